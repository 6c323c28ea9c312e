"""The whole API of several cells: each call goes to the cell that has its object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import functions_framework

from lowtide.cells.app import FrontApp

if TYPE_CHECKING:
    from flask import Request, Response

answer = FrontApp.of_function().front


@functions_framework.http
def front(request: Request) -> Response:
    """Answer a request."""
    return answer(request)
