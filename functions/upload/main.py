"""`POST /v1/files`, `DELETE /v1/files/{id}`, and `POST /v1/uploads…`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide import routes
from lowtide.app import App

if TYPE_CHECKING:
    from flask import Request, Response

application = routes.application(App.of_function(), routes.UPLOAD)


@functions_framework.http
def upload(request: Request) -> Response:
    """Answer a request."""
    return application(request)
