"""Every `GET` of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide import routes
from lowtide.app import App

if TYPE_CHECKING:
    from flask import Request, Response

application = routes.application(App.of_function(), routes.READ)


@functions_framework.http
def read(request: Request) -> Response:
    """Answer a request."""
    return application(request)
