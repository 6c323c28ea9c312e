"""Health and models: what a caller may ask about the service itself."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from lowtide import wiring
from lowtide.domain.errors import NotFound
from lowtide.http import types
from lowtide.http.application import json_response
from lowtide.postgres.schema import check_schema
from lowtide.readiness import Readiness

if TYPE_CHECKING:
    from flask import Response

    from lowtide.http.application import Call


def live() -> Response:
    """`GET /health/live`: the process answers."""
    return json_response({"status": "ok"})


def ready() -> Response:
    """`GET /health/ready`: the database answers, with the schema of this version; raises Unavailable."""
    _readiness().require()
    return json_response({"status": "ok"})


def models(call: Call) -> Response:
    """`GET /v1/models`: what engines serve, and what the caller's batches named."""
    return json_response(types.ModelPage(_models(call)))


def model(call: Call, name: str) -> Response:
    """`GET /v1/models/{name}`; raises NotFound."""
    for found in _models(call):
        if found.id == name:
            return json_response(found)
    raise NotFound(f"No model {name[:100]!r}: see /v1/models.", param="model")


def _models(call: Call) -> list[types.Model]:
    return [
        types.Model(id=name, created=int(since.timestamp()))
        for name, since in wiring.models().names(call.tenant)
    ]


@lru_cache(maxsize=1)
def _readiness() -> Readiness:
    return Readiness(check_database)


def check_database() -> None:
    """Raise Unavailable while the database does not answer or waits for a migration."""
    check_schema(wiring.database())
