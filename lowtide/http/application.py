"""What every HTTP function shares: routes, the caller, request ids, and errors in OpenAI's shape."""

from __future__ import annotations

import logging
import math
import uuid
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import msgspec
from flask import Response, current_app, has_app_context
from flask import request as routed
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod
from werkzeug.exceptions import NotFound as NoSuchRoute
from werkzeug.exceptions import RequestTimeout as BodyTooSlow
from werkzeug.routing import Map, Rule

from lowtide import wiring
from lowtide.domain.errors import (
    Conflict,
    InvalidRequest,
    LowtideError,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from lowtide.domain.ids import parse_batch_id
from lowtide.domain.traces import parse_trace
from lowtide.http.patience import PATIENCE
from lowtide.http.rate_headers import rate_headers
from lowtide.metrics import api as metrics
from lowtide.ports.tracing import BATCH, REQUEST, TENANT, SpanKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flask import Request

    from lowtide.domain.ids import TenantId
    from lowtide.http.operations import Route
    from lowtide.http.patience import Patience
    from lowtide.ports.tracing import Span
    from lowtide.postgres.tenants import Caller

    Match = tuple[Route, dict[str, Any]]

_log = logging.getLogger(__name__)
_LONGEST_PATH = 200


@dataclass(frozen=True, slots=True)
class Call:
    """One request of an authenticated caller; `joins_trace` if it came with a trace of its own."""

    request: Request
    caller: Caller
    joins_trace: bool = False

    @property
    def tenant(self) -> TenantId:
        """Whose objects this call may see."""
        return self.caller.tenant


class Application:
    """Answers the requests of one function."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._map = _map(routes)
        if has_app_context():
            # The framework's own routes take no path with a line break in it.
            current_app.register_error_handler(NoSuchRoute, lambda _: self(routed))

    def __call__(self, request: Request) -> Response:
        """Answer a request; never raises."""
        began = perf_counter()
        request_id = f"req_{uuid.uuid4().hex}"
        found = self._match(request)
        pattern = "unmatched" if isinstance(found, HTTPException) else found[0].path
        trace = parse_trace(request.headers.get("traceparent"), request.headers.get("tracestate"))
        method = metrics.method_of(request.method)
        tracer = wiring.tracer()
        with tracer.span(
            f"{method} {pattern}",
            kind=SpanKind.SERVER,
            parent=trace,
            attributes={
                REQUEST: request_id,
                "http.request.method": method,
                "http.route": pattern,
                "url.path": request.path[:_LONGEST_PATH],
                "url.scheme": request.scheme,
            },
        ) as span:
            response = self._respond(request, found, span, joins_trace=trace is not None)
            span.note({"http.response.status_code": response.status_code})
            if response.status_code >= 500:
                span.fail(str(response.status_code))
        response.headers["x-request-id"] = request_id
        if tracer.is_on and span.context is not None:
            response.headers["traceresponse"] = span.context.traceparent
        metrics.answered(pattern, request.method, response.status_code, perf_counter() - began)
        return response

    def _respond(
        self, request: Request, found: Match | HTTPException, span: Span, *, joins_trace: bool
    ) -> Response:
        headers: dict[str, str] = {}
        try:
            response = (
                _refusal(request, found)
                if isinstance(found, HTTPException)
                else self._answer(found, request, span, headers, joins_trace=joins_trace)
            )
        except LowtideError as error:
            if isinstance(error, Unavailable):
                _log.warning("request.unavailable", extra={"reason": error.for_log})
            response = error_response(error)
        except HTTPException as error:
            response = _refusal(request, error)
        except Exception:  # noqa: BLE001 - the last resort: a caller gets an answer, the log the cause
            _log.exception("request.failed")
            response = error_response(
                LowtideError("The server failed: this is a bug, please report it.")
            )
        # What is left of the body stays unread; the framework would read it, whole, into memory.
        request.stream = BytesIO()
        response.headers.update(headers)
        return response

    def _match(self, request: Request) -> Match | HTTPException:
        try:
            # The map holds Routes as its endpoints.
            return cast("Match", self._map.bind_to_environ(request.environ).match())
        except HTTPException as error:
            return error

    @staticmethod
    def _answer(
        found: Match, request: Request, span: Span, headers: dict[str, str], *, joins_trace: bool
    ) -> Response:
        """Return a route's answer; `headers` takes what every answer to this caller carries."""
        route, values = found
        if route.public:
            return route.handler(**values)
        caller = wiring.tenants().caller(request.headers.get("Authorization"))
        span.note({TENANT: str(caller.tenant)})
        if parse_batch_id(values.get("batch_id", "")) is not None:
            span.note({BATCH: values["batch_id"]})
        if caller.allowance is not None:
            headers.update(rate_headers(caller.allowance))
            caller.allowance.check()
        patience: Patience | None = request.environ.get(PATIENCE)
        if patience is not None:
            patience.earn()
        return route.handler(Call(request, caller, joins_trace), **values)


def json_response(value: object, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(msgspec.json.encode(value), status, mimetype="application/json")


def error_response(error: LowtideError) -> Response:
    """Return an error in OpenAI's shape."""
    body = {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }
    response = json_response(body, error.status)
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = "1"
    if isinstance(error, TooManyRequests):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        metrics.rate_limited(error.reason)
    if isinstance(error, Conflict):
        # OpenAI's clients would ask again and again: they take a 409 for a lock that is held.
        response.headers["x-should-retry"] = "false"
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _refusal(request: Request, error: HTTPException) -> Response:
    """Return 405 for a path that takes other methods, of this function or of another."""
    if isinstance(error, BodyTooSlow):
        return error_response(RequestTimeout(error.description or ""))
    if not isinstance(error, (NoSuchRoute, NoSuchMethod)):
        return error_response(InvalidRequest(error.description or "The request could not be read."))
    methods = sorted(_every_route().bind_to_environ(request.environ).allowed_methods())
    if not methods:
        message = "No such path: see /openapi.json for those there are."
        return error_response(NotFound(message, code="unknown_url"))
    response = error_response(MethodNotAllowed(f"This path takes {', '.join(methods)}."))
    response.headers["Allow"] = ", ".join(methods)
    return response


@lru_cache(maxsize=1)
def _every_route() -> Map:
    from lowtide.http.routes import ALL

    return _map(ALL)


def _map(routes: Sequence[Route]) -> Map:
    rules = [Rule(route.path, methods=[route.method], endpoint=route) for route in routes]
    return Map(rules, strict_slashes=False, merge_slashes=False)
