"""When each part of the installation was last seen at work."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

TICK = "dev.knative.sources.ping"
"""The type of a PingSource's event: a tick of the scheduler."""


class Sight(StrEnum):
    """What is seen.

    `function`: a function answered; `sent`: the broker took an event of a type; `delivered`: a
    function handled one; `engine`: an engine ended a line of a pool.
    """

    FUNCTION = "function"
    SENT = "sent"
    DELIVERED = "delivered"
    ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class Sighting:
    """When a part last did what it is for and when it last failed to, with how it failed."""

    succeeded_at: datetime | None = None
    failed_at: datetime | None = None
    problem: str = ""

    @property
    def fails(self) -> bool:
        """Whether the last that was seen is a failure."""
        if self.failed_at is None:
            return False
        return self.succeeded_at is None or self.failed_at > self.succeeded_at

    @property
    def last_at(self) -> datetime | None:
        """When it was last seen at all."""
        return max((at for at in (self.succeeded_at, self.failed_at) if at), default=None)


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What one process saw of a part since it last told: seconds ago, None where nothing was."""

    sight: Sight
    name: str
    succeeded: float | None
    failed: float | None
    problem: str
