"""`POST /v1/files` and `DELETE /v1/files/{id}`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.http import files
from lowtide.http.application import Application, Route

if TYPE_CHECKING:
    from flask import Request, Response

application = Application(
    [
        Route("POST", "/v1/files", files.upload),
        Route("DELETE", "/v1/files/<file_id>", files.delete),
    ]
)


@functions_framework.http
def upload(request: Request) -> Response:
    """Answer a request."""
    return application(request)
