"""Watching how the installation works, with a memory of the last hour."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lowtide.domain.errors import LowtideError
from lowtide.domain.operations import sample_of
from lowtide.domain.pools import Depth, Pool
from lowtide.domain.replicas import scaled_replicas

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.domain.operations import Operations, Sample
    from lowtide.ports import OperationsSource

SAMPLE_SECONDS: Final = 15.0
SAMPLES: Final = 240


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """How KEDA scales a pool: queued lines a replica, and the most replicas."""

    rows_per_replica: int
    most: int


@dataclass(frozen=True, slots=True)
class OperationsSeen:
    """The last good reading, what went wrong since, and samples of up to an hour, oldest first."""

    reading: Operations | None = None
    problem: str | None = None
    samples: tuple[Sample, ...] = ()


class OperationsWatch:
    """Reads operations and keeps a sample every 15 s, for an hour, in this process's memory.

    `look` never raises what a failing database raises.
    """

    def __init__(self, source: OperationsSource, rules: Mapping[Pool, ScaleRule]) -> None:
        self._source = source
        self._rules = rules
        self._sampled: Operations | None = None
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._seen = OperationsSeen()

    @property
    def seen(self) -> OperationsSeen:
        """The last that was seen."""
        return self._seen

    def look(self) -> None:
        """Read the database."""
        try:
            reading = self._source.read()
        except LowtideError as error:
            self._seen = OperationsSeen(self._seen.reading, error.message, tuple(self._samples))
            return
        self._sample(reading)
        self._seen = OperationsSeen(reading, None, tuple(self._samples))

    def _sample(self, reading: Operations) -> None:
        before = self._sampled
        if before and (reading.at - before.at).total_seconds() < SAMPLE_SECONDS - 1:
            return
        desired = {pool: self.desired(pool, reading) for pool in Pool}
        self._samples.append(sample_of(before, reading, desired))
        self._sampled = reading

    def desired(self, pool: Pool, reading: Operations) -> int:
        """Return the replicas that KEDA is told of: dedicated never gets more than planned."""
        rule = self._rules[pool]
        return scaled_replicas(
            Depth(reading.queued(pool), reading.running(pool)),
            rule.rows_per_replica,
            most=rule.most,
            planned=reading.planned if pool is Pool.DEDICATED else None,
            paused=reading.pause(pool) is not None,
        )
