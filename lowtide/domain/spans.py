"""How long something takes, as people say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def duration(span: timedelta) -> str:
    """Return a span in its largest unit, rounded down; under a minute in seconds."""
    seconds = max(int(span.total_seconds()), 0)
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
