"""Health and models: what a caller may ask about the service itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide import wiring
from lowtide.http.application import json_response
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from flask import Response

    from lowtide.http.application import Call


def live() -> Response:
    """`GET /health/live`: the process answers."""
    return json_response({"status": "ok"})


def ready() -> Response:
    """`GET /health/ready`: the database answers too; raises Unavailable."""
    check_database()
    return json_response({"status": "ok"})


def models(call: Call) -> Response:  # noqa: ARG001
    """`GET /v1/models`: any model name is accepted, so none is listed before it was used."""
    return json_response({"object": "list", "data": []})


def check_database() -> None:
    """Raise Unavailable when the database does not answer."""
    with begin(wiring.database()) as connection:
        connection.execute(text("SELECT 1"))
