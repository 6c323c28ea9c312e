"""What lies ahead: the open lines of all tenants, and the workers that run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowtide.domain.demand import Demand
from lowtide.domain.estimates import Crew, expected_completion
from lowtide.domain.pools import Pool
from lowtide.domain.rates import attempts_per_line
from lowtide.domain.situations import Situation
from lowtide.domain.statuses import BatchStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from lowtide.domain.batches import Batch
    from lowtide.domain.demand import Capacity
    from lowtide.domain.rates import Rate

_MIXED = ""


@dataclass(frozen=True, slots=True)
class OpenWork:
    """Open batches that are due at the same time and run the same model; None is not known yet.

    `lines` have no result yet; so far lines `ended` or were `retried`.
    """

    deadline: datetime
    model: str | None
    lines: int
    ended: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class Outlook:
    """One look, at the database's time `at`; `work` covers every batch, also the one asked for.

    `workers` are those alive whose engine is there, `rates` what was measured, by pool and model ("" for several). Workers
    of `paused` pools end what they hold, and nothing more.
    """

    at: datetime
    work: tuple[OpenWork, ...] = ()
    workers: Mapping[Pool, int] = field(default_factory=dict)
    rates: Mapping[tuple[Pool, str], Rate] = field(default_factory=dict)
    paused: frozenset[Pool] = frozenset()

    @property
    def demand(self) -> tuple[Demand, ...]:
        """The open lines by deadline."""
        return tuple(Demand(work.deadline, work.lines) for work in self.work)

    def eta(self, batch: Batch, prior: float) -> datetime | None:
        """Return when a batch will probably be done; None unless it is in progress and workers run.

        `prior` is the rate of a replica that was never measured, in lines a second. Lines that
        started on dedicated stay there: no worker of spot ends them.
        """
        if batch.status is not BatchStatus.IN_PROGRESS:
            return None
        return expected_completion(
            batch.total - batch.completed - batch.failed,
            sum(work.lines for work in self.work if work.deadline < batch.deadline),
            [
                Crew(count, self._rate(pool, prior))
                for pool, count in self.workers.items()
                if pool not in self.paused and batch.pool in (Pool.SPOT, pool)
            ],
            self.at,
            attempts=attempts_per_line(*self._tries()),
        )

    def measured(self, capacity: Capacity) -> Capacity:
        """Return the configured capacity as measured, the way the scheduler counts on it."""
        ended, retried = self._tries()
        dedicated = {
            model: rate for (pool, model), rate in self.rates.items() if pool is Pool.DEDICATED
        }
        models = frozenset(work.model for work in self.work if work.model is not None)
        situation = Situation(
            self.at,
            (),
            models=models,
            ended=ended,
            retried=retried,
            rates=dedicated,
            paused=self.paused,
        )
        return situation.measured(capacity)

    def _tries(self) -> tuple[int, int]:
        return sum(work.ended for work in self.work), sum(work.retried for work in self.work)

    def _rate(self, pool: Pool, prior: float) -> float:
        """Return the lines a second of a replica, over the models as they are open."""
        lines = sum(work.lines for work in self.work)
        seconds = sum(work.lines / self._model_rate(pool, work.model, prior) for work in self.work)
        return lines / seconds if seconds > 0 else self._model_rate(pool, None, prior)

    def _model_rate(self, pool: Pool, model: str | None, prior: float) -> float:
        for name in (model, _MIXED):
            rate = None if name is None else self.rates.get((pool, name))
            if rate is not None and rate.mean:
                return rate.mean
        return prior
