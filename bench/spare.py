"""Batch work in the spare capacity of a live service, in simulated time.

    python -m bench.spare [--seeds 1,2,3] [--plot FILE]

Beside online traffic (Poisson) a worker with `LOWTIDE_ENGINE_SHARE=spare` uses the engine of
`bench.shared_engine`; the strategy and the scheduler's plan are the product's own code.

- Latency: the worker's target is 1.2 x of the mean time to first token without it. Compared are the
  online p99 with and without it, and its tokens with the spare ones: those of the largest fixed
  number in flight that keeps the p99 within the bar.
- Queue: without a target the engine's queue decides alone. Spare tokens are those of the best fixed
  number, whatever the latency.
- Deadline: online traffic doubles in the middle of a batch. Spare capacity alone is late; the
  dedicated pool steps in.

Ends with one JSON line; exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from bench.shared_engine import HARDWARE, SharedEngine, follow, percentile
from bench.spot_crew import Crew
from lowtide.core.ids import BatchId
from lowtide.engines.spare import SpareConcurrency
from lowtide.planning.demand import Capacity
from lowtide.planning.escalation import OpenBatch, plan_tick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.planning.escalation import Plan

ONLINE: Final = 10.0
"""Online requests per second."""
SECONDS: Final = 1800.0
MOST: Final = HARDWARE.max_num_seqs
TARGET: Final = 1.2
P99_BAR, SPARE_BAR = 1.15, 0.9
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE, DOUBLES_AT = 900.0, 450.0
REQUESTS: Final = 20_000
CAPACITY: Final = Capacity(rate=10.0, replicas=4, cold_start=60.0, margin=0.0, tick=10.0)


def steady(_: float) -> float:
    """Return a constant rate of online requests."""
    return ONLINE


def doubling(now: float) -> float:
    """Return a rate that doubles."""
    return ONLINE * (1 if now < DOUBLES_AT else 2)


class Traffic:
    """The online traffic of a seed: `mean` and `p99` are its seconds to first token alone."""

    def __init__(self, online: Callable[[float], float], seed: int, seconds: float) -> None:
        self.online, self.seed, self.seconds = online, seed, seconds
        alone = self.engine()
        follow(alone, 0, seconds)
        self.mean = fmean(seconds for _, seconds in alone.first_tokens)
        self.p99 = _p99(alone)

    def engine(self) -> SharedEngine:
        """Return an engine that serves it."""
        return SharedEngine(self.online, seed=self.seed)

    def run(self, strategy: SpareConcurrency | int) -> tuple[float, float]:
        """Return the tokens per second of a worker, and the online p99 relative to that without."""
        engine = self.engine()
        follow(engine, strategy, self.seconds)
        return engine.tokens / self.seconds, _p99(engine) / self.p99


def _p99(engine: SharedEngine) -> float:
    return percentile([seconds for _, seconds in engine.first_tokens], 0.99)


def latency(seed: int) -> dict[str, float]:
    """Measure the worker with a target."""
    traffic = Traffic(steady, seed, SECONDS)
    rate, p99 = traffic.run(SpareConcurrency(MOST, TARGET * traffic.mean))
    below, above = 0, MOST
    spare = 0.0
    while above - below > 1:
        number = (below + above) // 2
        tokens, ratio = traffic.run(number)
        if ratio <= P99_BAR:
            below, spare = number, tokens
        else:
            above = number
    return {
        "seed": seed,
        "p99_ms": round(1000 * traffic.p99, 1),
        "p99_ratio": round(p99, 3),
        "tokens_per_s": round(rate),
        "spare_ratio": round(rate / spare, 3),
        "best_number": below,
    }


def queue(seed: int) -> dict[str, float]:
    """Measure the worker without a target."""
    traffic = Traffic(steady, seed, SECONDS)
    rate, p99 = traffic.run(SpareConcurrency(MOST, None))
    spare = max(traffic.run(round(MOST * share))[0] for share in (0.8, 0.9, 1.0, 1.25))
    return {
        "seed": seed,
        "p99_ratio": round(p99, 3),
        "tokens_per_s": round(rate),
        "spare_ratio": round(rate / spare, 3),
    }


class Job:
    """A batch on spare capacity and on the dedicated pool; `ended` is None if it is late."""

    def __init__(self, traffic: Traffic, *, has_dedicated: bool = True) -> None:
        self.engine = traffic.engine()
        self.engine.left = REQUESTS
        self.ended: float | None = None
        self.dedicated = Crew(CAPACITY.rate)
        self.replicas: list[int] = []
        self._has_dedicated = has_dedicated
        self._moved = 0
        self._now = 0.0
        strategy = SpareConcurrency(MOST, TARGET * traffic.mean)
        self.moments = follow(self.engine, strategy, DEADLINE, self._tick)
        self._tick()

    @property
    def dedicated_done(self) -> int:
        """The requests that ended on dedicated."""
        return self._moved - self.dedicated.lines

    def _tick(self) -> None:
        now = self.engine.now
        self.dedicated.run(self._now, now)
        self._now = now
        if self.ended is None and self.engine.done + self.dedicated_done == REQUESTS:
            self.ended = now
        if self._has_dedicated and now % CAPACITY.tick == 0:
            self._apply(plan_tick([self._seen()], _date(now), CAPACITY, self.dedicated.starts(now)))
        self.replicas.append(len(self.dedicated))

    def _seen(self) -> OpenBatch:
        running = self.dedicated.in_hand(self._now)
        return OpenBatch(
            BatchId(uuid.UUID(int=1)),
            _date(DEADLINE),
            spot=int(self.engine.left),
            running_spot=self.engine.in_flight,
            dedicated=self.dedicated.lines - running,
            running_dedicated=running,
        )

    def _apply(self, plan: Plan) -> None:
        moved = sum(move.lines for move in plan.escalations)
        moved -= sum(move.lines for move in plan.returns)
        revoked = sum(move.lines for move in plan.revocations)
        self.engine.left -= moved
        revoked = self.engine.revoke(revoked)
        self.dedicated.lines += moved + revoked
        self._moved += moved + revoked
        self.dedicated.resize(plan.replicas, self._now + CAPACITY.cold_start)


def _date(now: float) -> datetime:
    return START + timedelta(seconds=now)


def deadline(seed: int) -> tuple[dict[str, Any], Job]:
    """Run a batch while online traffic doubles, with and without the dedicated pool."""
    traffic = Traffic(doubling, seed, DEADLINE)
    job, alone = Job(traffic), Job(traffic, has_dedicated=False)
    began = next((at for at, replicas in enumerate(job.replicas) if replicas), None)
    return {
        "seed": seed,
        "ended_s": job.ended,
        "ended_without_dedicated_s": alone.ended,
        "left_without_dedicated": REQUESTS - alone.engine.done,
        "dedicated_from_s": began,
        "dedicated_share": round(job.dedicated_done / REQUESTS, 3),
        "p99_ratio": round(_p99(job.engine) / traffic.p99, 3),
    }, job


def missed(
    by_latency: Sequence[dict[str, float]],
    by_queue: Sequence[dict[str, float]],
    jobs: Sequence[dict[str, Any]],
) -> list[str]:
    """Return the figures that miss their bars."""
    problems = [
        f"seed {run['seed']}: p99 {run['p99_ratio']}"
        for run in [*by_latency, *jobs]
        if run["p99_ratio"] > P99_BAR
    ]
    problems += [
        f"seed {run['seed']}: {run['spare_ratio']} of the spare tokens"
        for run in [*by_latency, *by_queue]
        if run["spare_ratio"] < SPARE_BAR
    ]
    for run in jobs:
        if run["ended_s"] is None:
            problems.append(f"seed {run['seed']}: late")
        if run["ended_without_dedicated_s"] is not None:
            problems.append(f"seed {run['seed']}: spare capacity alone is in time")
    return problems


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--plot", type=Path, help="draw the first seed's deadline to this file")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    by_latency, by_queue, jobs = [], [], []
    for seed in seeds:
        by_latency.append(run := latency(seed))
        print(
            f"seed {seed}, latency: online p99 {run['p99_ratio']:.3f} x of {run['p99_ms']} ms, "
            f"{run['tokens_per_s']} tokens/s, {run['spare_ratio']:.3f} of the spare ones",
            flush=True,
        )
        by_queue.append(run := queue(seed))
        print(
            f"seed {seed}, queue: {run['tokens_per_s']} tokens/s, {run['spare_ratio']:.3f} of the "
            f"spare ones, online p99 {run['p99_ratio']:.2f} x"
        )
        run, job = deadline(seed)
        jobs.append(run)
        print(
            f"seed {seed}, deadline of {DEADLINE:.0f} s: ended after {run['ended_s']} s, "
            f"{run['dedicated_share']:.0%} on dedicated, from {run['dedicated_from_s']} s on; without "
            f"it {run['left_without_dedicated']} requests are late; online p99 {run['p99_ratio']:.3f} x"
        )
        if given.plot and seed == seeds[0]:
            from bench.spare_plot import draw

            draw(given.plot, job)
    problems = missed(by_latency, by_queue, jobs)
    print(
        json.dumps({"latency": by_latency, "queue": by_queue, "deadline": jobs, "missed": problems})
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
