"""Routes with their parameters and responses, cursor paging, and rate-limit headers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lowtide.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flask import Request, Response

    from lowtide.core.scopes import Scope
    from lowtide.tenants.model import Allowance


JSON = "application/json"


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """A query parameter or header; `schema` is JSON Schema."""

    name: str
    description: str
    schema: Mapping[str, Any]
    place: str = "query"
    required: bool = False


IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "A retry with the same key and body returns the batch of the first call; a different body is "
    "rejected with 422.",
    {"type": "string", "maxLength": 256},
    "header",
)
"""The header of calls that create a batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """The OpenAPI operation of a route; `answer` is a type, or None for `media` without a schema.

    `body` is the type of a JSON body, which needs one of `body_needs`; `form` is the schema of a
    multipart one. With `presigned`, the type of a JSON answer, an answer may be that instead, or a
    redirect. `errors` are the statuses beyond those of every authenticated call.
    """

    name: str
    summary: str
    answer: type | None
    media: str = JSON
    body: type | None = None
    body_needs: tuple[str, ...] = ()
    form: Mapping[str, Any] | None = None
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[int, ...] = ()
    partial: bool = False
    presigned: type | None = None
    headers: Mapping[str, str] | None = None
    extension: bool = False

    @property
    def query_names(self) -> tuple[str, ...]:
        """The names of the query parameters."""
        return tuple(each.name for each in self.parameters if each.place == "query")


API_VERSION = Parameter(
    "api-version", "Accepted from Azure's clients and ignored.", {"type": "string"}
)
"""The query parameter of every operation."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A method and a path pattern (werkzeug's syntax), and their handler.

    The handler gets a Call and the path's values. A caller needs the `scope`; without one the route is
    public, and its handler gets the App and the values. A route without an operation is not documented.
    """

    method: str
    path: str
    handler: Callable[..., Response]
    operation: Operation | None = None
    scope: Scope | None = field(kw_only=True)


_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class PageArguments:
    """The requested page of a list."""

    after: str | None
    limit: int
    newest_first: bool


def check_query(request: Request, accepted: Sequence[str]) -> None:
    """Raise InvalidRequest for a query parameter that is not `accepted`."""
    for name in request.args:
        if name not in (*accepted, API_VERSION.name):
            close = get_close_matches(name[:100], accepted, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InvalidRequest(
                f"Unknown query parameter {name[:100]!r}.{hint} "
                f"This path accepts {', '.join(accepted) or 'none'}.",
                param=name[:100],
                code="unknown_parameter",
            )


def argument(request: Request, name: str) -> str | None:
    """Return a query parameter; None if missing or empty, as clients send unset ones empty."""
    return request.args.get(name) or None


def page_arguments(request: Request, *, max_limit: int, default: int) -> PageArguments:
    """Read `after`, `limit` and `order`; raises InvalidRequest."""
    limit = limit_argument(request, max_limit=max_limit, default=default)
    order = argument(request, "order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be 'asc' or 'desc'.", param="order")
    return PageArguments(argument(request, "after"), limit, order == "desc")


def limit_argument(request: Request, *, max_limit: int, default: int) -> int:
    """Read `limit`; raises InvalidRequest."""
    return number_argument(request, "limit", max_value=max_limit, default=default)


def number_argument(request: Request, name: str, *, max_value: int, default: int = 0) -> int:
    """Read an integer from 1 to `max_value`; raises InvalidRequest."""
    text = argument(request, name) or str(default)
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= max_value:
        raise InvalidRequest(f"{name} must be an integer from 1 to {max_value}.", param=name)
    return int(text)


LIMIT = "x-ratelimit-limit-requests"
REMAINING = "x-ratelimit-remaining-requests"
RESET = "x-ratelimit-reset-requests"


def rate_headers(allowance: Allowance) -> dict[str, str]:
    """Return the headers of every response to a tenant with a rate limit."""
    return {
        LIMIT: str(allowance.per_minute),
        REMAINING: str(allowance.remaining),
        RESET: duration(allowance.reset),
    }


def duration(seconds: float) -> str:
    """Format seconds as OpenAI does, in Go's format: `120ms`, `8.64s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, remainder = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{remainder / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
