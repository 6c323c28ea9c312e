"""Replica counts, as the original computed them and KEDA does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowtide.domain.pools import Depth


def desired_replicas(rows: int, rows_per_replica: int, *, most: int, least: int = 0) -> int:
    """Return ceil(rows / rows_per_replica), clamped to `least`..`most`."""
    return max(least, min(most, -(-rows // rows_per_replica)))


def scaled_replicas(
    depth: Depth,
    rows_per_replica: int,
    *,
    most: int,
    planned: int | None,
    paused: bool,
    stranded: int = 0,
) -> int:
    """Return the replicas that KEDA is told of: no more than `planned`, if anybody plans the pool.

    What is held in a pool keeps one replica there though the plan counts on none: lines that stay on
    dedicated, and what still runs. Nothing that waits in a paused pool asks for any. `stranded` is
    how many workers the pool has where all their engines are away: it gets no more of them.
    """
    if paused:
        return desired_replicas(depth.running, rows_per_replica, most=most)
    if planned is not None:
        most = min(most, max(planned, 1))
    if stranded:
        most = min(most, stranded)
    return desired_replicas(depth.queued + depth.running, rows_per_replica, most=most)
