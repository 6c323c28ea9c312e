"""Human-readable numbers and times, in the viewer's time zone."""

from __future__ import annotations

from datetime import UTC, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from nicegui.slot import Slot

from lowtide.core.durations import duration
from lowtide.fleets.model import ANY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta


COOKIE: Final = "zone"
NO_CUSTOM_ID: Final = "custom_id deleted"
"""Shown for a request whose custom_id went with its input file."""


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


__all__ = [
    "absolute", "ago", "counted", "day", "duration", "hint", "milliseconds",
    "models_in_words", "money", "number", "per_second",
    "rough", "size", "token_rates", "utc",
]  # fmt: skip


def number(value: int) -> str:
    """Return a count with thousands separators; from 10^7 in M (10^6), from 10^9 in G (10^9).

    Example: `1319 -> "1,319"`, `12345678 -> "12.3 M"`.
    """
    if value < 10_000_000:
        return f"{value:,}"
    if value < 1_000_000_000:
        return f"{value / 1e6:,.1f} M"
    return f"{value / 1e9:,.1f} G"


def per_second(rate: float) -> str:
    """Return a rate without its unit: a count from 10 on, two digits below."""
    return number(round(rate)) if rate >= 10 else f"{rate:.2g}"


def token_rates(input_rate: float | None, output_rate: float | None) -> str:
    """Return rates of tokens: `1,204 input and 340 output tokens/s`; unknown ones are left out."""
    rates = (("input", input_rate), ("output", output_rate))
    known = [f"{per_second(rate)} {name}" for name, rate in rates if rate is not None]
    return f"{' and '.join(known)} tokens/s" if known else ""


def counted(value: int, noun: str) -> str:
    """Return a count with its noun: `1 worker`, `2 workers`."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def rough(span: timedelta) -> str:
    """Return a span in its largest unit; `under 1 min` below, so that rows stay the same."""
    if span.total_seconds() < 60:
        return "under 1 min"
    count, unit = duration(span).split()[:2]
    return f"{count} {unit}"


def ago(moment: datetime, now: datetime) -> str:
    """Return the rough age of a moment; `just now` for the first minute."""
    if (now - moment).total_seconds() < 60:
        return "just now"
    return f"{rough(now - moment)} ago"


def milliseconds(seconds: float) -> str:
    """Return a latency in milliseconds."""
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else "under 1 ms"


def absolute(moment: datetime, zone: tzinfo | None = None) -> str:
    """Return a moment to the second: `26 Nov 2026, 08:05:42`; in the viewer's time zone by default.

    The footer of every page names that zone.
    """
    local = moment.astimezone(zone or viewer_zone())
    return f"{local.day} {local:%b %Y, %H:%M:%S}"


def day(moment: datetime) -> str:
    """Return the day of a moment in the viewer's time zone: `27 Dec 2026`."""
    local = moment.astimezone(viewer_zone())
    return f"{local.day} {local:%b %Y}"


def utc(moment: datetime) -> str:
    """Return a moment in UTC, for the tooltip of its `absolute`."""
    return f"{absolute(moment, UTC)} UTC"


def hint(moment: datetime) -> str:
    """Return a moment in the viewer's time zone and in UTC, for the tooltip of its `ago`."""
    return f"{absolute(moment)} · {utc(moment)}"


def size(count: int) -> str:
    """Return a number of bytes in the largest decimal unit: `1.5 MB`."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count} B"


def money(amount: float) -> str:
    """Return an amount to the cent; a smaller one is `under 0.01`."""
    return f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else "under 0.01"


def models_in_words(models: Sequence[str]) -> str:
    """Return the models of a fleet in words; none are declared for one that ends."""
    if not models:
        return "no longer declared"
    return ", ".join("any model" if model == ANY else model for model in models)
