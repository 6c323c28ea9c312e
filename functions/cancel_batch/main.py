"""`POST /v1/batches/{id}/cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.http import batches
from lowtide.http.application import Application, Route

if TYPE_CHECKING:
    from flask import Request, Response

application = Application([Route("POST", "/v1/batches/<batch_id>/cancel", batches.cancel)])


@functions_framework.http
def cancel_batch(request: Request) -> Response:
    """Answer a request."""
    return application(request)
