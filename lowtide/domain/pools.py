"""Worker pools."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Pool(StrEnum):
    """Where a line may run: cheap and interruptible, or stable and dearer."""

    SPOT = "spot"
    DEDICATED = "dedicated"


@dataclass(frozen=True, slots=True)
class Depth:
    """Lines of a pool that wait and that run."""

    queued: int
    running: int
