"""How numbers and times read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.domain.spans import duration
from portal.zones import visitor_zone

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["absolute", "ago", "counted", "duration", "milliseconds", "money", "number", "size"]


def number(value: int) -> str:
    """Return a count with thousands separators, from ten million on in millions.

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
    """Return how long ago a moment was; the first minute is `just now`, so that rows stay still."""
    if (now - moment).total_seconds() < 60:
        return "just now"
    return f"{duration(now - moment)} ago"


def milliseconds(seconds: float) -> str:
    """Return a latency in milliseconds."""
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else "under 1 ms"


def absolute(moment: datetime) -> str:
    """Return a moment by the visitor's clock, to the second, with its zone."""
    return f"{moment.astimezone(visitor_zone()):%Y-%m-%d %H:%M:%S %Z}"


def size(count: int) -> str:
    """Return a number of bytes in the largest decimal unit: `1.5 MB`."""
    for unit, length in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count} B"


def money(amount: float) -> str:
    """Return an amount to the cent; a smaller one says so."""
    return f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else "under 0.01"
