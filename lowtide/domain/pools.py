"""Worker pools."""

from __future__ import annotations

from enum import StrEnum


class Pool(StrEnum):
    """Where a line may run: cheap and interruptible, or stable and dearer."""

    SPOT = "spot"
    DEDICATED = "dedicated"
