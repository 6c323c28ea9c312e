"""`POST /v1/batches/{id}/cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide import routes
from lowtide.app import App

if TYPE_CHECKING:
    from flask import Request, Response

application = routes.application(App.of_function(), routes.CANCEL_BATCH)


@functions_framework.http
def cancel_batch(request: Request) -> Response:
    """Answer a request."""
    return application(request)
