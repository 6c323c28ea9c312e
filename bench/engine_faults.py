"""What faults of engines cost: nothing but time.

    python -m bench.engine_faults [--requests N] [--away SECONDS] [--compare N]

Runs local stacks with the simulated engine: a batch during which every engine is down for a while,
then the same requests on four workers, and on four of which one has a broken engine (it answers 500
to everything while its health check passes). Prints charged attempts and throughput: a broken
engine may cost its own quarter and 2 % more. Ends with one JSON line; exits with 1 if a request
failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.stacks import running

LATENCY = 0.25
SETTINGS = {
    "LOWTIDE_SIMULATED_LATENCY": str(LATENCY),
    "LOWTIDE_WORKER_CONCURRENCY": "8",
    "LOWTIDE_WORKER_PREFETCH": "8",
    "LOWTIDE_MAX_LOST_LEASES": "100",
    "LOWTIDE_WORKER_POLL_CAP": "1",
}


def run(requests: int, settings: dict[str, str]) -> dict[str, Any]:
    """Run a batch; return its charged attempts and its throughput."""
    with running(SETTINGS | settings) as stack:
        source = chat_file(requests)
        began = time.monotonic()
        batch = stack.submit(stack.upload(source))
        ended = stack.finish(batch, source, answers=simulated_answer, within=7200)
        seconds = time.monotonic() - began
        [row] = stack.query(
            "SELECT max(attempts) AS most, count(*) FILTER (WHERE attempts > 1) AS again, "
            "count(*) FILTER (WHERE NOT succeeded) AS failed, "
            "percentile_disc(0.1) WITHIN GROUP (ORDER BY finished_at) AS first, "
            "percentile_disc(0.9) WITHIN GROUP (ORDER BY finished_at) AS last FROM results"
        )
        return {
            "requests": ended["request_counts"],
            "seconds": round(seconds, 1),
            "most_attempts": row.most,
            "tried_again": row.again,
            "failed": row.failed,
            "rate": round(0.8 * requests / (row.last - row.first).total_seconds(), 1),
        }


def main() -> int:
    """Run the requested scenarios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--away", type=float, default=600.0)
    parser.add_argument("--compare", type=int, default=6_000)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    if given.requests:
        start = time.time() + 60
        faults = f"down@{start:.0f}-{start + given.away:.0f}"
        found["away"] = run(given.requests, {"LOWTIDE_SIMULATED_FAULTS": faults})
        print(f"engine down for {given.away:g} s: {found['away']}", flush=True)
    if given.compare:
        found["well"] = run(given.compare, {})
        print(f"four workers: {found['well']}", flush=True)
        found["broken"] = run(given.compare, {"LOWTIDE_SIMULATED_FAULTS": "infer-spot-1:500"})
        share = found["broken"]["rate"] / found["well"]["rate"] / 0.75
        found["of_three_quarters"] = round(share, 3)
        print(f"one of four failing: {found['broken']}, {share:.1%} of three quarters", flush=True)
    print(json.dumps(found))
    return int(any(each["failed"] for each in found.values() if isinstance(each, dict)))


if __name__ == "__main__":
    sys.exit(main())
