"""The time zone that a visitor's clock shows; the browser tells it in a cookie."""

from __future__ import annotations

from datetime import UTC, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from nicegui.slot import Slot

COOKIE: Final = "zone"


def visitor_zone() -> tzinfo:
    """Return the zone of the visitor whose page is being drawn; UTC outside a page."""
    stack = Slot.get_stack()
    request = stack[-1].parent.client.request if stack else None
    return zone_named("" if request is None else request.cookies.get(COOKIE, ""))


@lru_cache(maxsize=256)
def zone_named(name: str) -> tzinfo:
    """Return a zone by its name; UTC for one that nobody knows."""
    try:
        return ZoneInfo(name) if name else UTC
    except (KeyError, OSError, ValueError):
        return UTC
