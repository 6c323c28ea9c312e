"""Replica counts, as the original computed them and KEDA does."""

from __future__ import annotations


def desired_replicas(rows: int, rows_per_replica: int, *, most: int, least: int = 0) -> int:
    """Return ceil(rows / rows_per_replica), clamped to `least`..`most`."""
    return max(least, min(most, -(-rows // rows_per_replica)))
