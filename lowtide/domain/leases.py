"""What lost leases say about the lines under them."""

from __future__ import annotations

STORM = 5
"""Fewest leases lost at once that count as a storm."""


def is_storm(lost: int, living: int) -> bool:
    """Whether so many leases were lost at once that capacity went away, and no line is to blame.

    A line that kills its worker costs one lease at a time. A storm may bring a line to the edge of
    being set aside, never over it.
    """
    return lost >= STORM and lost >= living
