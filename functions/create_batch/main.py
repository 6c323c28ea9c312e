"""`POST /v1/batches`, and the actions on dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide import routes
from lowtide.app import App

if TYPE_CHECKING:
    from flask import Request, Response

application = routes.application(App.of_function(), routes.CREATE_BATCH)


@functions_framework.http
def create_batch(request: Request) -> Response:
    """Answer a request."""
    return application(request)
