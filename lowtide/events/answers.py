"""How a function answers events: as brokers read it.

Knative's broker takes an answer with a body for an event of its own, and one that is none for a
failure: `functions_framework` alone answers `OK`, and each event would be delivered again and again.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from cloudevents.exceptions import GenericException
from flask import Response, current_app, has_app_context, request

from lowtide.events.wire import MalformedEventError, read_event

_log = logging.getLogger(__name__)


def answer_without_body() -> None:
    """Have the function that is being loaded answer 204 to what it took, and 400 to what is no event.

    A broker does not send again what is answered 400.
    """
    if has_app_context():
        current_app.before_request(_refuse_malformed)
        current_app.register_error_handler(GenericException, _refused)
        current_app.after_request(_without_body)


def _refuse_malformed() -> Response | None:
    if request.method != "POST":
        return None
    try:
        read_event(dict(request.headers), request.get_data())
    except MalformedEventError as error:
        return _refused(error)
    return None


def _refused(error: Exception) -> Response:
    _log.warning("event.refused", extra={"reason": str(error)[:200]})
    return Response(status=HTTPStatus.BAD_REQUEST)


def _without_body(response: Response) -> Response:
    if request.method != "POST":
        return response
    if response.status_code == HTTPStatus.OK:
        response.status_code = HTTPStatus.NO_CONTENT
    response.set_data(b"")
    response.headers.pop("Content-Type", None)
    return response
