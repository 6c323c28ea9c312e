"""A simulated installation: requests one by one, with the claims' and the scheduler's own rules.

Spot workers come and go, tenants with weights and limits send batches at random, requests take
lognormal times, fail and are tried again. The clock is virtual; a seed gives the same run.
"""

from __future__ import annotations

import heapq
import math
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from lowtide.batches.model import Batch, BatchStatus, Outcomes
from lowtide.batches.workload import FleetCapacity, OpenWork, PoolWorkers, Workload
from lowtide.core.ids import BatchId, FileId, TenantId
from lowtide.core.pools import Cost, Pool
from lowtide.planning.demand import (
    Capacity,
    PoolScale,
    Rate,
    RateSample,
    desired_replicas,
)
from lowtide.planning.escalation import OpenBatch
from lowtide.planning.state import SchedulerState, decide
from lowtide.planning.urgency import changed_barriers
from lowtide.queue.fairness import FairShare, Lane

if TYPE_CHECKING:
    from collections.abc import Iterator

START = datetime(2026, 1, 1, tzinfo=UTC)
TICK = 10.0
RETRY = 15.0
MODEL = "m"
TARGET = 1
LONGEST = 6_000.0


@dataclass
class Scenario:
    """One installation: the true values, of which forecasts know only what is configured.

    Every `lifetime` seconds a random part of the spot workers is lost for `outage` seconds; other
    tenants and the batch's own send batches of about half its size every `arrival` seconds, with random
    priorities if they are `prioritized`.
    """

    rng: Random
    rate: float
    slots: int
    spot: PoolScale
    dedicated: int
    cold_start: float
    spread: float
    failures: float
    lifetime: float
    outage: float
    weights: list[int]
    limits: list[int | None]
    arrival: float
    size: int
    window: float
    prioritized: Random | None = None
    margin: float = 30.0

    @property
    def fleet(self) -> FleetCapacity:
        """The configuration, with a rate that is only roughly right."""
        capacity = Capacity(
            rate=self.rate * self.spread,
            replicas=self.dedicated,
            cold_start=self.cold_start,
            margin=self.margin,
            tick=TICK,
            in_flight=self.slots,
        )
        return FleetCapacity(capacity, self.spot, RETRY)


def scenario(seed: int, *, prioritized: bool = False) -> Scenario:
    """Return a random scenario, the same one with priorities and without."""
    rng = Random(seed)  # noqa: S311
    tenants = rng.randint(1, 4)
    rate, slots, most = rng.uniform(0.3, 3.0), rng.choice([2, 4, 8]), rng.randint(2, 8)
    size = int(rng.uniform(100, 1200))
    alone = size / (rate * most)
    return Scenario(
        rng=rng,
        rate=rate,
        slots=slots,
        spot=PoolScale(rng.choice([5, 20]), most),
        dedicated=rng.randint(1, 3),
        cold_start=rng.uniform(20, 120),
        spread=rng.lognormvariate(0, 0.3),
        failures=rng.choice([0.0, 0.0, 0.02, 0.15]),
        lifetime=rng.choice([3600.0, 14_400.0, math.inf]),
        outage=rng.uniform(30, 400),
        weights=[rng.choice([1, 1, 2, 4]) for _ in range(tenants)],
        limits=[rng.choice([None, None, rng.randint(2, 24)]) for _ in range(tenants)],
        arrival=rng.choice([math.inf, alone * 2, alone * 4]),
        size=size,
        window=max(240.0, alone * rng.choice([1.5, 4.0, 12.0, 40.0])),
        prioritized=Random(seed) if prioritized else None,  # noqa: S311
    )


@dataclass
class Work:
    """A batch and the state of its requests."""

    id: int
    tenant: int
    total: int
    created: float
    deadline: float
    spot: int = 0
    dedicated: int = 0
    running: dict[Pool, int] = field(default_factory=lambda: dict.fromkeys(Pool, 0))
    delayed: int = 0
    ended: int = 0
    retried: int = 0
    interrupted: int = 0
    running_seconds: float = 0.0
    at_risk: bool = False
    finished: float | None = None
    last_at: float = 0.0
    priority: int = 0
    barrier: datetime | None = None
    on_dedicated: int = 0
    key: BatchId = field(init=False)

    def __post_init__(self) -> None:
        self.key = BatchId(uuid.UUID(int=self.id))

    @property
    def open(self) -> int:
        """Requests without a result."""
        return self.total - self.ended


@dataclass
class Worker:
    """A worker with its slots; `pace` makes it faster or slower than the mean."""

    pool: Pool
    ready: float
    pace: float
    shares: FairShare
    running: dict[int, tuple[Work, float]] = field(default_factory=dict)
    is_gone: bool = False
    lines: int = 0
    is_full: bool = False


@dataclass(frozen=True)
class Moment:
    """Facts at one tick, as the API would read them."""

    workload: Workload
    batch: Batch


class Simulation:
    """One run. `moment` is a random tick at which the target batch was open."""

    def __init__(self, setting: Scenario) -> None:
        self.setting = setting
        self.now = 0.0
        self.work: dict[int, Work] = {}
        self.workers: list[Worker] = []
        self.market = setting.spot.replicas
        self.rates: dict[tuple[Pool, str], Rate] = {}
        self.wished: tuple[datetime, ...] = ()
        self.moment: Moment | None = None
        self._ticks = 0
        self._picks = Random(setting.size)  # noqa: S311
        self._events: list[tuple[float, int, str, object]] = []
        self._sequence = 0
        self._tenants = [TenantId(uuid.UUID(int=index + 1)) for index in range(8)]

    def run(self) -> float:
        """Run until the target batch ends; return the time of its end."""
        setting, rng = self.setting, self.setting.rng
        for _ in range(rng.randint(0, 3) if setting.arrival < math.inf else 0):
            self._arrive(rng.randrange(len(setting.weights)), self._size(), -1.0)
        self._at(rng.uniform(0, 300), "target", None)
        self._at(
            rng.expovariate(1 / setting.arrival) if setting.arrival < math.inf else LONGEST * 2,
            "arrival",
            None,
        )
        self._at(0.0, "tick", None)
        while self._events:
            self.now, _, kind, payload = heapq.heappop(self._events)
            getattr(self, f"_on_{kind}")(payload)
            target = self.work.get(TARGET)
            if target is not None and target.finished is not None:
                return target.finished
            if self.now > LONGEST:
                break
        return math.inf

    def _at(self, when: float, kind: str, payload: object) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, kind, payload))

    def _size(self) -> int:
        return max(1, int(self.setting.size * self.setting.rng.lognormvariate(-1, 0.8)))

    def _arrive(self, tenant: int, size: int, window: float) -> None:
        setting = self.setting
        priority = 0 if setting.prioritized is None else setting.prioritized.randint(-10, 10)
        self._sequence += 1
        number = TARGET if window > 0 else self._sequence + TARGET
        if window <= 0:
            alone = size / (setting.rate * setting.spot.replicas)
            window = max(240.0, alone * setting.rng.choice([2.0, 8.0, 40.0]))
        self.work[number] = Work(
            number, tenant, size, self.now, self.now + window + (number % 1000) * 1e-3, spot=size,
            priority=priority,
        )  # fmt: skip
        self._claim_all()

    def _on_target(self, _: object) -> None:
        self._arrive(0, self.setting.size, self.setting.window)

    def _on_arrival(self, _: object) -> None:
        setting = self.setting
        self._arrive(setting.rng.randrange(len(setting.weights)), self._size(), -1.0)
        self._at(self.now + setting.rng.expovariate(1 / setting.arrival), "arrival", None)

    def _on_tick(self, _: object) -> None:
        self._fold()
        self._plan()
        self._scale_spot()
        self._claim_all()
        target = self.work.get(TARGET)
        if target is not None:
            # Any tick is kept with the same probability.
            self._ticks += 1
            if self._picks.random() * self._ticks < 1:
                self.moment = Moment(self._workload(), self._batch(target))
        self._at(self.now + TICK, "tick", None)

    def _fold(self) -> None:
        """Take a sample of each worker that was full since the last tick."""
        for worker in self.workers:
            is_full = worker.ready <= self.now and len(worker.running) >= self.setting.slots
            if worker.is_full and is_full:
                key = worker.pool, MODEL
                sample = RateSample(worker.lines, TICK)
                self.rates[key] = self.rates.get(key, Rate()).fold([sample])
            worker.is_full, worker.lines = is_full, 0

    def _plan(self) -> None:
        open_work = [work for work in self.work.values() if work.open > 0]
        dedicated = [worker for worker in self.workers if worker.pool is Pool.DEDICATED]
        state = SchedulerState(
            now=_time(self.now),
            batches=tuple(
                OpenBatch(
                    work.key,
                    _time(work.deadline),
                    spot=work.spot + work.delayed,
                    running_spot=work.running[Pool.SPOT],
                    dedicated=work.dedicated,
                    running_dedicated=work.running[Pool.DEDICATED],
                    tenant=self._tenants[work.tenant],
                    priority=work.priority,
                    barrier=work.barrier,
                )
                for work in open_work
            ),
            present=sum(worker.ready <= self.now for worker in dedicated),
            wished=self.wished,
            models=frozenset({MODEL}),
            ended=sum(work.ended for work in open_work),
            retried=sum(work.retried for work in open_work),
            rates={
                model: rate for (pool, model), rate in self.rates.items() if pool is Pool.DEDICATED
            },
        )
        plan = decide(state, self.setting.fleet.dedicated)
        self.wished = state.wishes(plan.replicas)
        for work in open_work:
            work.at_risk = work.key in plan.at_risk
        for batch, barrier in changed_barriers([(state.batches, plan.tight)]).items():
            self.work[batch.int].barrier = barrier
        for move in plan.escalations:
            work = self.work[move.batch.int]
            lines = min(move.lines, work.spot)
            work.spot -= lines
            work.dedicated += lines
        for move in plan.returns:
            work = self.work[move.batch.int]
            lines = min(move.lines, work.dedicated)
            work.dedicated -= lines
            work.spot += lines
        for move in plan.revocations:
            self._revoke(self.work[move.batch.int], move.lines)
        for _ in range(plan.replicas - len(dedicated)):
            self._start(Pool.DEDICATED)
        for worker in dedicated[plan.replicas :]:
            if not worker.running:
                self._stop(worker)

    def _revoke(self, work: Work, lines: int) -> None:
        for worker in self.workers:
            if worker.pool is not Pool.SPOT:
                continue
            for slot, (owner, _) in list(worker.running.items()):
                if owner is work and lines > 0:
                    lines -= 1
                    del worker.running[slot]
                    work.running[Pool.SPOT] -= 1
                    work.dedicated += 1

    def _scale_spot(self) -> None:
        setting = self.setting
        if setting.lifetime < math.inf and setting.rng.random() < TICK / setting.lifetime:
            lost = setting.rng.randint(1, setting.spot.replicas)
            self.market = max(0, self.market - lost)
            self._at(self.now + setting.rng.expovariate(1 / setting.outage), "return", lost)
        spot = [worker for worker in self.workers if worker.pool is Pool.SPOT]
        lines = sum(
            work.spot + work.delayed + work.running[Pool.SPOT] for work in self.work.values()
        )
        wanted = desired_replicas(
            lines, setting.spot.rows_per_replica, max_replicas=setting.spot.replicas
        )
        for worker in spot[self.market :]:
            self._stop(worker)
        for worker in spot[wanted : self.market]:
            if not worker.running:
                self._stop(worker)
        for _ in range(min(wanted, self.market) - len(spot)):
            self._start(Pool.SPOT)

    def _on_return(self, lost: object) -> None:
        assert isinstance(lost, int)
        self.market = min(self.setting.spot.replicas, self.market + lost)

    def _start(self, pool: Pool) -> None:
        rng = self.setting.rng
        ready = self.now + self.setting.cold_start * rng.uniform(0.5, 1.0)
        worker = Worker(pool, ready, rng.lognormvariate(0, 0.1), FairShare(pool))
        self.workers.append(worker)
        self._at(ready, "ready", worker)

    def _stop(self, worker: Worker) -> None:
        worker.is_gone = True
        self.workers.remove(worker)
        for work, _ in worker.running.values():
            work.running[worker.pool] -= 1
            work.interrupted += 1
            if worker.pool is Pool.SPOT:
                work.spot += 1
            else:
                work.dedicated += 1
        worker.running.clear()

    def _on_ready(self, worker: object) -> None:
        assert isinstance(worker, Worker)
        if not worker.is_gone:
            self._claim(worker)

    def _claim_all(self) -> None:
        """Let the workers claim in random order: they poll at their own times."""
        for worker in self.setting.rng.sample(self.workers, len(self.workers)):
            self._claim(worker)

    def _claim(self, worker: Worker) -> None:
        """Fill a worker's slots as claims do."""
        setting = self.setting
        if worker.ready > self.now or len(worker.running) >= setting.slots:
            return
        tried: set[int] = set()
        while (free := setting.slots - len(worker.running)) > 0:
            lanes = [
                Lane(
                    work.key,
                    self._tenants[work.tenant],
                    work.deadline - self.now,
                    setting.weights[work.tenant],
                    work.at_risk,
                    setting.limits[work.tenant],
                    priority=work.priority,
                    barrier=self._barrier(work),
                )
                for work in self.work.values()
                if self._waiting(work, worker.pool) > 0 and work.tenant not in tried
            ]
            if not lanes:
                return
            for share in worker.shares.plan(lanes, free):
                tenant = share.tenant.int - 1
                room = self._room(tenant)
                taken = 0
                for lane in share.lanes:
                    work = self.work[lane.batch.int]
                    lines = min(self._waiting(work, worker.pool), share.lines - taken, room - taken)
                    for _ in range(lines):
                        self._begin(worker, work)
                    taken += max(lines, 0)
                worker.shares.served(share, taken)
                if taken < share.lines:
                    tried.add(tenant)

    @staticmethod
    def _waiting(work: Work, pool: Pool) -> int:
        return work.spot if pool is Pool.SPOT else work.dedicated

    def _barrier(self, work: Work) -> float:
        if work.barrier is None:
            return math.inf
        return (work.barrier - _time(self.now)).total_seconds()

    def _room(self, tenant: int) -> int:
        limit = self.setting.limits[tenant]
        if limit is None:
            return 1 << 30
        running = sum(
            sum(work.running.values()) for work in self.work.values() if work.tenant == tenant
        )
        return max(0, limit - running)

    def _begin(self, worker: Worker, work: Work) -> None:
        if worker.pool is Pool.SPOT:
            work.spot -= 1
        else:
            work.dedicated -= 1
        work.running[worker.pool] += 1
        self._sequence += 1
        slot = self._sequence
        worker.running[slot] = (work, self.now)
        mean = self.setting.slots / self.setting.rate / worker.pace
        seconds = mean * self.setting.rng.lognormvariate(-0.125, 0.5)
        self._at(self.now + seconds, "done", (worker, slot))

    def _on_done(self, ended: object) -> None:
        assert isinstance(ended, tuple)
        worker, slot = ended
        if slot not in worker.running:
            return
        work, since = worker.running.pop(slot)
        work.running[worker.pool] -= 1
        worker.lines += 1
        if self.setting.rng.random() < self.setting.failures:
            work.retried += 1
            work.delayed += 1
            again = self.now + RETRY * self.setting.rng.uniform(0.67, 1.33)
            work.last_at = again
            self._at(again, "retry", (work, worker.pool))
        else:
            work.ended += 1
            work.on_dedicated += worker.pool is Pool.DEDICATED
            work.running_seconds += self.now - since
            if work.open == 0:
                work.finished = self.now
                if work.id != TARGET:
                    del self.work[work.id]
        if self.setting.limits[work.tenant] is not None:
            self._claim_all()
        else:
            self._claim(worker)

    def _on_retry(self, payload: object) -> None:
        assert isinstance(payload, tuple)
        work, pool = payload
        work.delayed -= 1
        if pool is Pool.SPOT:
            work.spot += 1
        else:
            work.dedicated += 1
        self._claim_all()

    def _workload(self) -> Workload:
        setting = self.setting
        counts = {pool: [0, 0] for pool in Pool}
        for worker in self.workers:
            counts[worker.pool][worker.ready > self.now] += 1
        return Workload(
            at=_time(self.now),
            work=tuple(
                OpenWork(
                    _time(work.deadline),
                    MODEL,
                    work.open,
                    work.ended,
                    work.retried,
                    work.running_seconds,
                    work.tenant,
                    setting.weights[work.tenant],
                    setting.limits[work.tenant],
                    work.at_risk,
                    last_at=_time(work.last_at) if work.delayed else None,
                    priority=work.priority,
                    barrier=work.barrier,
                )
                for work in self.work.values()
                if work.open > 0
            ),
            # A worker that starts has no lease yet.
            workers={pool: PoolWorkers(ready) for pool, (ready, _) in counts.items()},
            rates=dict(self.rates),
        )

    def _batch(self, work: Work) -> Batch:
        running = sum(work.running.values())
        outcomes = Outcomes(queued=work.open - running, running=running, completed=work.ended)
        return replace(
            _BATCH,
            in_progress_at=_time(work.created),
            created_at=_time(work.created),
            deadline=_time(work.deadline),
            total=work.total,
            outcomes=outcomes,
            at_risk=work.at_risk,
            retries=work.retried,
            interruptions=work.interrupted,
        )


def moments(
    seeds: Iterator[int] | range, *, prioritized: bool = False
) -> Iterator[tuple[int, Moment, FleetCapacity, float]]:
    """Yield a random moment of each run, the configuration, and the seconds until the true end."""
    for seed in seeds:
        setting = scenario(seed, prioritized=prioritized)
        simulation = Simulation(setting)
        end = simulation.run()
        moment = simulation.moment
        if math.isinf(end) or moment is None:
            continue
        at = (moment.workload.at - START).total_seconds()
        yield seed, moment, setting.fleet, end - at


def _time(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


_BATCH = Batch(
    id=BatchId(uuid.UUID(int=TARGET)), tenant=TenantId(uuid.UUID(int=1)), user="u",
    input_file=FileId(uuid.UUID(int=2)), input_key="k", endpoint="/v1/embeddings", model=MODEL,
    completion_window="24h", status=BatchStatus.IN_PROGRESS, created_at=START, deadline=START,
    in_progress_at=START, finalizing_at=None, completed_at=None, failed_at=None, expired_at=None,
    cancelling_at=None, cancelled_at=None, at_risk=False, total=0, outcomes=Outcomes(),
    output_file=None, error_file=None, errors=(), metadata=None, input_tokens=0, output_tokens=0,
    interruptions=0, retries=0, escalations=0, finished_on_dedicated=0,
    cost=Cost("USD", 0.0, 0.0, 0.0),
)  # fmt: skip
