"""Every `GET` of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.http import batches, files, service
from lowtide.http.application import Application, Route

if TYPE_CHECKING:
    from flask import Request, Response

application = Application(
    [
        Route("GET", "/v1/files", files.page),
        Route("GET", "/v1/files/<file_id>", files.get),
        Route("GET", "/v1/files/<file_id>/content", files.content),
        Route("GET", "/v1/batches", batches.page),
        Route("GET", "/v1/batches/<batch_id>", batches.get),
        Route("GET", "/v1/models", service.models),
        Route("GET", "/health/live", service.live, public=True),
        Route("GET", "/health/ready", service.ready, public=True),
    ]
)


@functions_framework.http
def read(request: Request) -> Response:
    """Answer a request."""
    return application(request)
