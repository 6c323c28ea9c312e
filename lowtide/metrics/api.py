"""The API's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

_REQUESTS = Counter("api_requests_total", "HTTP requests answered.", ["route", "method", "status"])
_SECONDS = Histogram("api_request_seconds", "Seconds to answer.", ["route", "method"])
_RATE_LIMITED = Counter("api_rate_limited_total", "Requests answered 429.", ["reason"])
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_of(method: str) -> str:
    """Return a method that is known, or `other`, so that whoever calls makes no new names."""
    return method if method in _METHODS else "other"


def answered(route: str, method: str, status: int, seconds: float) -> None:
    """Count one answer; `route` is the pattern, never the path, so that series stay few."""
    method = method_of(method)
    _REQUESTS.labels(route, method, str(status)).inc()
    _SECONDS.labels(route, method).observe(seconds)


def rate_limited(reason: str) -> None:
    """Count one request that met a limit."""
    _RATE_LIMITED.labels(reason).inc()
