"""Faults of one fleet: a pause of its pools, or the loss of its engine."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Final

from tests.chaos.exchange import FLEETS
from tests.e2e.command import lowtide
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.schedule import Fault
    from tests.chaos.system import System
    from tests.chaos.workload import Batch, Tenant, Workload

WINDOW: Final = "5m"
PATIENCE: Final = 360.0
"""Seconds until a batch with that window is over, in time or not."""
_POOLS: Final = (("spot",), ("dedicated",), ("spot", "dedicated"))


@contextmanager
def disturbed(system: System, fault: Fault) -> Iterator[str]:
    """Disturb a fleet for the block; yield how."""
    fleet, how = fault.target, fault.kind.partition(".")[2]
    if how == "pause":
        pools = _POOLS[fault.pick % len(_POOLS)]
        try:
            for pool in pools:
                _order(system, "pause", pool, fleet)
            yield f"{' and '.join(pools)} of {fleet}"
        finally:
            for pool in pools:
                _order(system, "resume", pool, fleet)
        return
    engine = system.engines[fleet]
    engine.order(mode=how, target="*", seconds=2 * PATIENCE)
    try:
        yield f"engine of {fleet}"
    finally:
        engine.order(mode="heal", target="*", seconds=0)


def submit_to(fleet: str, workload: Workload, tenant: Tenant) -> Batch:
    """Create a batch for one fleet, which must complete within its window."""
    return workload.submit(tenant, "spared", size=40, window=WINDOW, models=[FLEETS[fleet]])


def _order(system: System, verb: str, pool: str, fleet: str) -> None:
    """Pause or resume a pool, as soon as the database allows it."""

    def done() -> bool:
        with suppress(AssertionError, TimeoutExpired):
            place = (pool, "--fleet", fleet, "--data-dir", system.data_dir)
            lowtide("pools", verb, *place, timeout=30)
            return True
        return False

    until(done, f"{verb} {pool} of {fleet}", within=PATIENCE, every=0.5)
