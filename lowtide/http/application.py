"""The HTTP application of all functions: routing, authentication, errors, rate limits."""

from __future__ import annotations

import logging
import math
import uuid
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import msgspec
from flask import Response, current_app, has_app_context
from flask import request as routed
from prometheus_client import Counter, Histogram
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod
from werkzeug.exceptions import NotFound as NoSuchRoute
from werkzeug.exceptions import RequestTimeout as BodyTooSlow
from werkzeug.routing import Map, Rule

from lowtide.core.errors import (
    Conflict,
    InvalidRequest,
    LowtideError,
    MethodNotAllowed,
    MissingScope,
    NotFound,
    RequestTimeout,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from lowtide.core.ids import parse_batch_id
from lowtide.http.connections import PATIENCE
from lowtide.http.operations import check_query, rate_headers
from lowtide.telemetry.tracing import BATCH, REQUEST, TENANT, SpanKind, parse_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flask import Request

    from lowtide.app import App
    from lowtide.core.ids import TenantId
    from lowtide.http.connections import Patience
    from lowtide.http.operations import Route
    from lowtide.services import Services
    from lowtide.telemetry.tracing import Span
    from lowtide.tenants.callers import Caller

    Match = tuple[Route, dict[str, Any]]


_log = logging.getLogger(__name__)
_LONGEST_PATH = 200


@dataclass(frozen=True, slots=True)
class Call:
    """An authenticated HTTP request; `joins_trace` is True if it carries a trace context."""

    request: Request
    caller: Caller
    services: Services
    joins_trace: bool = False

    @property
    def tenant(self) -> TenantId:
        """The tenant whose objects this call may access."""
        return self.caller.tenant


class Application:
    """Handle the HTTP requests of one function; `all_routes` are those of all functions."""

    def __init__(self, app: App, routes: Sequence[Route], all_routes: Sequence[Route]) -> None:
        self._app = app
        self._map = _map(routes)
        self._all_routes = all_routes
        if has_app_context():
            # The framework's own routes do not match a path with a line break.
            current_app.register_error_handler(NoSuchRoute, lambda _: self(routed))

    def __call__(self, request: Request) -> Response:
        """Return the response to a request; never raises."""
        start = perf_counter()
        request_id = f"req_{uuid.uuid4().hex}"
        match = self._match(request)
        pattern = "unmatched" if isinstance(match, HTTPException) else match[0].path
        trace = parse_trace(request.headers.get("traceparent"), request.headers.get("tracestate"))
        method = method_of(request.method)
        tracer = self._app.tracer
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
            response = self._respond(request, match, span, joins_trace=trace is not None)
            span.note({"http.response.status_code": response.status_code})
            if response.status_code >= 500:
                span.fail(str(response.status_code))
        response.headers["x-request-id"] = request_id
        if tracer.is_on and span.context is not None:
            response.headers["traceresponse"] = span.context.traceparent
        answered(pattern, request.method, response.status_code, perf_counter() - start)
        return response

    def _respond(
        self, request: Request, match: Match | HTTPException, span: Span, *, joins_trace: bool
    ) -> Response:
        headers: dict[str, str] = {}
        try:
            response = (
                self._refusal(request, match)
                if isinstance(match, HTTPException)
                else self._answer(match, request, span, headers, joins_trace=joins_trace)
            )
        except LowtideError as error:
            if isinstance(error, Unavailable):
                _log.warning("request.unavailable", extra={"reason": error.for_log})
            response = error_response(error)
        except HTTPException as error:
            response = self._refusal(request, error)
        except Exception:  # noqa: BLE001 - the last resort: a caller gets an answer, the log the cause
            _log.exception("request.failed")
            response = error_response(
                LowtideError("Internal server error: this is a bug, please report it.")
            )
        # The rest of the body stays unread; the framework would read all of it into memory.
        request.stream = BytesIO()
        response.headers.update(headers)
        return response

    def _match(self, request: Request) -> Match | HTTPException:
        try:
            # The map holds Routes as its endpoints.
            return cast("Match", self._map.bind_to_environ(request.environ).match())
        except HTTPException as error:
            return error

    def _answer(
        self,
        match: Match,
        request: Request,
        span: Span,
        headers: dict[str, str],
        *,
        joins_trace: bool,
    ) -> Response:
        """Return a route's response; add the rate-limit headers of its caller to `headers`."""
        route, values = match
        if route.scope is None:
            return route.handler(self._app, **values)
        caller = self._app.callers.caller(request.headers.get("Authorization"))
        span.note({TENANT: str(caller.tenant)})
        if parse_batch_id(values.get("batch_id", "")) is not None:
            span.note({BATCH: values["batch_id"]})
        if caller.allowance is not None:
            headers.update(rate_headers(caller.allowance))
            caller.allowance.check()
        caller.require(route.scope)
        check_query(request, () if route.operation is None else route.operation.query_names)
        patience: Patience | None = request.environ.get(PATIENCE)
        if patience is not None:
            patience.earn()
        return route.handler(Call(request, caller, self._app.services, joins_trace), **values)

    @cached_property
    def _full_map(self) -> Map:
        return _map(self._all_routes)

    def _refusal(self, request: Request, error: HTTPException) -> Response:
        """Return the error response; 405 if any function serves the path with another method."""
        if isinstance(error, BodyTooSlow):
            return error_response(RequestTimeout(error.description or ""))
        if not isinstance(error, (NoSuchRoute, NoSuchMethod)):
            return error_response(InvalidRequest(error.description or "The request is malformed."))
        methods = sorted(self._full_map.bind_to_environ(request.environ).allowed_methods())
        if not methods:
            message = "Unknown path: see /openapi.json."
            return error_response(NotFound(message, code="unknown_url"))
        response = error_response(
            MethodNotAllowed(f"Method not allowed: use {', '.join(methods)}.")
        )
        response.headers["Allow"] = ", ".join(methods)
        return response


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
        rate_limited(error.reason)
    if isinstance(error, Conflict):
        # OpenAI's clients would retry: they assume that a 409 is a lock timeout.
        response.headers["x-should-retry"] = "false"
    if isinstance(error, MissingScope):
        # As RFC 6750, section 3.1, has it.
        response.headers["WWW-Authenticate"] = (
            f'Bearer error="insufficient_scope", scope="{error.scope}"'
        )
    if isinstance(error, Unauthenticated):
        is_token = error.code == "invalid_token"
        response.headers["WWW-Authenticate"] = (
            'Bearer error="invalid_token"' if is_token else "Bearer"
        )
    return response


def _map(routes: Sequence[Route]) -> Map:
    rules = [Rule(route.path, methods=[route.method], endpoint=route) for route in routes]
    return Map(rules, strict_slashes=False, merge_slashes=False)


_REQUESTS = Counter("api_requests_total", "HTTP requests.", ["route", "method", "status"])
_SECONDS = Histogram("api_request_seconds", "Duration of HTTP requests.", ["route", "method"])
_RATE_LIMITED = Counter("api_rate_limited_total", "HTTP requests rejected with 429.", ["reason"])
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_of(method: str) -> str:
    """Return a known method, or `other`, so that callers cannot create new metric labels."""
    return method if method in _METHODS else "other"


def answered(route: str, method: str, status: int, seconds: float) -> None:
    """Count a response; `route` is the pattern, never the path, so that series stay few."""
    method = method_of(method)
    _REQUESTS.labels(route, method, str(status)).inc()
    _SECONDS.labels(route, method).observe(seconds)


def rate_limited(reason: str) -> None:
    """Count a rate-limited request."""
    _RATE_LIMITED.labels(reason).inc()
