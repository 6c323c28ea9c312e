"""`POST /v1/batches`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.http import batches
from lowtide.http.application import Application, Route

if TYPE_CHECKING:
    from flask import Request, Response

application = Application([Route("POST", "/v1/batches", batches.create)])


@functions_framework.http
def create_batch(request: Request) -> Response:
    """Answer a request."""
    return application(request)
