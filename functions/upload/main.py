"""`POST /v1/files` and `DELETE /v1/files/{id}`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.http import routes
from lowtide.http.application import Application

if TYPE_CHECKING:
    from flask import Request, Response

application = Application(routes.UPLOAD)


@functions_framework.http
def upload(request: Request) -> Response:
    """Answer a request."""
    return application(request)
