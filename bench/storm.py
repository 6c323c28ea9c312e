"""A storm: the leases of 200 spot workers run out at once, with 48 lines in each one's hands.

    python -m bench.storm [--workers N] [--lines N]

Two ticks sweep at the same time, while another process claims and settles requests of its own.
Prints the time of the sweep, of claims and of settlements before and during it, and the delay until
lost requests can be claimed again: none the first time, spread out from the second on. No storm
makes a dead letter. Runs on an embedded PostgreSQL with durable settings. Ends with one JSON line;
exits with 1 if a request was lost or counted twice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from bench.stage import ROOT, Stage
from lowtide.core.ids import new_id
from lowtide.core.pools import Pool
from lowtide.database.connections import connect
from lowtide.engines.outcomes import Usage
from lowtide.queue.claims import Finished
from lowtide.queue.store import QueueStore
from lowtide.scheduler.sweep import SweepStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

STEPS = "bench.queue_steps"
LINES, BATCHES, SET = 200_000, 4, 50
QUIET_SECONDS = 3.0
MAX_LOST_LEASES = 3
TALLIES = "SELECT coalesce(sum(interrupted), 0)::integer FROM tallies"
SPREAD = """
SELECT count(*) AS lines, count(*) FILTER (WHERE wait <= 0) AS at_once,
  coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY wait), 0) AS p50, coalesce(max(wait), 0) AS most,
  (SELECT coalesce(max(n), 0) FROM (
    SELECT count(*) AS n FROM queue WHERE lost_leases > 0 GROUP BY date_trunc('second', available_at)
  ) s) AS in_one_second
FROM (SELECT extract(epoch FROM available_at - now())::double precision AS wait
  FROM queue WHERE lost_leases > 0) w
"""

AGAIN = text(
    "UPDATE queued_runs SET available_at = now() - interval '1 h' * lost_leases WHERE lost_leases > 0"
)


def claim_on(url: str) -> None:
    """Claim and settle requests until the end of the input; print the times of each round."""
    queue = QueueStore(connect(url, pool_size=2), new_id=new_id, lease_duration=3600)
    lease = queue.open_lease(Pool.SPOT, "other")
    stopped = threading.Event()

    def stop() -> None:
        sys.stdin.read()
        stopped.set()

    threading.Thread(target=stop, daemon=True).start()
    took: list[tuple[float, float, float]] = []
    print("ready", flush=True)
    while not stopped.is_set():
        began = time.time()
        claims = queue.claim(lease, Pool.SPOT, SET)
        claimed = time.time()
        finished = [
            Finished(claim.batch, claim.line, succeeded=True, attempts=1, usage=Usage(1, 1),
                     status_code=200, body=b"{}")
            for claim in claims
        ]  # fmt: skip
        queue.settle(lease, finished, [])
        took.append((began, claimed - began, time.time() - claimed))
        stopped.wait(0.005)
    print(json.dumps(took))


def lose(engine: Engine, workers: int, lines: int) -> int:
    """Claim requests for workers that never settle them; return the number claimed."""
    queue = QueueStore(engine, new_id=new_id, lease_duration=3600)
    held = 0
    for _ in range(workers):
        lease = queue.open_lease(Pool.SPOT, "lost")
        held += len(queue.claim(lease, Pool.SPOT, lines))
    return held


def sweep_twice(engine: Engine) -> dict[str, Any]:
    """Expire the lost workers' leases, and sweep them with two concurrent ticks."""
    ticks = SweepStore(engine, new_id=new_id, max_lost_leases=MAX_LOST_LEASES)
    with engine.begin() as connection:
        connection.execute(text("UPDATE workers SET expires_at = now() WHERE name = 'lost'"))
    found: list[tuple[float, float, int]] = []

    def tick() -> None:
        began = time.time()
        reaped = ticks.sweep(cancel_grace=1e6, stalled_after=1e6).reaped
        found.append((began, time.time(), reaped))

    ticking = [threading.Thread(target=tick) for _ in range(2)]
    for thread in ticking:
        thread.start()
    for thread in ticking:
        thread.join()
    return {
        "from": min(began for began, _, _ in found),
        "until": max(ended for _, ended, _ in found),
        "reaped": [reaped for _, _, reaped in found],
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the maximum in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    return {
        "count": len(seconds),
        "p50_ms": round(statistics.median(ordered) * 1000, 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 1),
        "most_ms": round(ordered[-1] * 1000, 1),
    }


def storm(stage: Stage, engine: Engine, workers: int, lines: int) -> dict[str, Any]:
    """Run one storm beside the claims of another process."""
    with engine.begin() as connection:
        before = connection.execute(text(TALLIES)).scalar_one()
    held = lose(engine, workers, lines)
    command = [sys.executable, "-m", "bench.storm", "--claim-on", stage.url("worker")]
    other = subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    other.stdout.readline()
    time.sleep(QUIET_SECONDS)
    swept = sweep_twice(engine)
    with engine.begin() as connection:
        spread = connection.execute(text(SPREAD)).one()._asdict()
        interrupted = connection.execute(text(TALLIES)).scalar_one() - before
        buried = connection.execute(text("SELECT count(*) FROM dead_letters")).scalar_one()
    out, _ = other.communicate("")
    took = json.loads(out)
    calm = [one for one in took if one[0] + one[1] + one[2] < swept["from"]][5:]
    hit = [one for one in took if one[0] < swept["until"] and sum(one) > swept["from"]]
    return {
        "held": held,
        "reaped": swept["reaped"],
        "interrupted": interrupted,
        "dead_letters": buried,
        "sweep_ms": round((swept["until"] - swept["from"]) * 1000),
        "claims_before": percentiles([claim for _, claim, _ in calm]),
        "claims_during": percentiles([claim for _, claim, _ in hit]),
        "settlements_before": percentiles([settle for _, _, settle in calm]),
        "settlements_during": percentiles([settle for _, _, settle in hit]),
        "spread": {name: round(value, 2) for name, value in spread.items()},
    }


def describe(one: dict[str, Any]) -> str:
    """Format the figures of a storm."""
    times = "; ".join(
        f"{what} {one[f'{what}_{when}']['p50_ms']} / {one[f'{what}_{when}']['p99_ms']} ms {when}"
        for what in ("claims", "settlements")
        for when in ("before", "during")
    )
    back = one["spread"]
    return (
        f"{one['storm']} storm: {one['held']:,} requests swept in {one['sweep_ms']:,} ms by two ticks "
        f"({one['reaped'][0]:,} + {one['reaped'][1]:,}), {one['dead_letters']:,} dead letters\n"
        f"  p50 / p99 of {times}\n"
        f"  back: {back['at_once']:,} at once, half of them after {max(0, back['p50']):.1f} s, "
        f"the last after {max(0, back['most']):.1f} s, "
        f"at most {back['in_one_second']:,} within a second"
    )


def main() -> int:
    """Run three storms; return 1 if a request was lost or counted twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--lines", type=int, default=48)
    parser.add_argument("--claim-on", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.claim_on:
        claim_on(wanted.claim_on)
        return 0
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        engine = connect(stage.url("worker"), pool_size=4)
        stage.measured(STEPS, "fill", str(LINES), str(BATCHES), "1", "1")
        found = []
        for name in ("first", "second", "third"):
            # Requests that were lost before come first, so that they are lost again.
            with engine.begin() as connection:
                connection.execute(AGAIN)
            found.append({"storm": name} | storm(stage, engine, wanted.workers, wanted.lines))
            print(describe(found[-1]))
        engine.dispose()
    wrong = [
        one["storm"]
        for one in found
        if sum(one["reaped"]) != one["held"]
        or one["interrupted"] + one["dead_letters"] != one["held"]
    ]
    print(json.dumps({"storms": found, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
