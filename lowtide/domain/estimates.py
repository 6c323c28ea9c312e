"""When a batch will probably be done. Estimates inform; only the demand bound decides."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Crew:
    """Workers of a pool that run now, and the lines a second that each ends."""

    replicas: int
    rate: float


def expected_completion(
    open_lines: int,
    lines_ahead: int,
    crews: Iterable[Crew],
    now: datetime,
    *,
    attempts: float = 1.0,
) -> datetime | None:
    """Return when a batch ends if the replicas that run now go on as they do.

    `lines_ahead` are open lines of batches that are due earlier; `attempts` is how often a line is
    run on average until it ends. None while nothing runs.
    """
    if open_lines <= 0:
        return now
    speed = sum(crew.replicas * crew.rate for crew in crews)
    if speed <= 0:
        return None
    try:
        return now + timedelta(seconds=(open_lines + lines_ahead) * attempts / speed)
    except OverflowError:
        return None
