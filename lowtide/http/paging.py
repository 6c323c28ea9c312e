"""Cursor paging, as OpenAI's lists have it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.errors import InvalidRequest

if TYPE_CHECKING:
    from flask import Request

_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class PageArguments:
    """Which page of a list is wanted."""

    after: str | None
    limit: int
    newest_first: bool


def argument(request: Request, name: str) -> str | None:
    """Return a query parameter; None where it is absent or empty, as clients send unset ones."""
    return request.args.get(name) or None


def page_arguments(request: Request, *, most: int, default: int) -> PageArguments:
    """Read `after`, `limit` and `order`; raises InvalidRequest."""
    limit = limit_argument(request, most=most, default=default)
    order = argument(request, "order") or "desc"
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be 'asc' or 'desc'.", param="order")
    return PageArguments(argument(request, "after"), limit, order == "desc")


def limit_argument(request: Request, *, most: int, default: int) -> int:
    """Read `limit`; raises InvalidRequest."""
    text = argument(request, "limit") or str(default)
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= most:
        raise InvalidRequest(f"limit must be a number from 1 to {most}.", param="limit")
    return int(text)
