"""Human-readable numbers and times, in the viewer's time zone."""

from __future__ import annotations

from datetime import UTC, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from nicegui.slot import Slot

from lowtide.core.durations import duration

if TYPE_CHECKING:
    from datetime import datetime


COOKIE: Final = "zone"


def viewer_zone() -> tzinfo:
    """Return the viewer's time zone, as the current page's cookie has it; UTC outside a page."""
    stack = Slot.get_stack()
    request = stack[-1].parent.client.request if stack else None
    return zone_named("" if request is None else request.cookies.get(COOKIE, ""))


@lru_cache(maxsize=256)
def zone_named(name: str) -> tzinfo:
    """Return a time zone by its name; UTC for an empty or unknown one."""
    try:
        return ZoneInfo(name) if name else UTC
    except (KeyError, OSError, ValueError):
        return UTC


__all__ = ["absolute", "ago", "counted", "duration", "milliseconds", "money", "number", "size"]


def number(value: int) -> str:
    """Return a count with thousands separators; from 10^7 in M (10^6), from 10^9 in G (10^9).

    Example: `1319 -> "1,319"`, `12345678 -> "12.3 M"`.
    """
    if value < 10_000_000:
        return f"{value:,}"
    if value < 1_000_000_000:
        return f"{value / 1e6:,.1f} M"
    return f"{value / 1e9:,.1f} G"


def counted(value: int, noun: str) -> str:
    """Return a count with its noun: `1 worker`, `2 workers`."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def ago(moment: datetime, now: datetime) -> str:
    """Return the age of a moment; `just now` for the first minute, so that rows stay the same."""
    if (now - moment).total_seconds() < 60:
        return "just now"
    return f"{duration(now - moment)} ago"


def milliseconds(seconds: float) -> str:
    """Return a latency in milliseconds."""
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else "under 1 ms"


def absolute(moment: datetime) -> str:
    """Return a moment in the viewer's time zone, to the second, with the zone's name."""
    return f"{moment.astimezone(viewer_zone()):%Y-%m-%d %H:%M:%S %Z}"


def size(count: int) -> str:
    """Return a number of bytes in the largest decimal unit: `1.5 MB`."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count} B"


def money(amount: float) -> str:
    """Return an amount to the cent; a smaller one is `under 0.01`."""
    return f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else "under 0.01"
