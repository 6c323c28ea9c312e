"""How large the database is with and after twenty batches, and what their end costs.

    python -m bench.retention [--batches N] [--lines N]

Batches of an earlier day with answers of 1,200 bytes pass through an embedded PostgreSQL with
durable settings, one after the other; then ticks end their data. Size and speed before are those
after one batch came and went. Prints the bytes per request, the longest statement of retention, and
how fast the tick, the landing page and the claims are, after against before. Ends with one JSON
line; exits with 1 if a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text

from bench.stage import Stage
from lowtide.app import App
from lowtide.core.ids import DEFAULT_TENANT, new_id, uuid7
from lowtide.core.pools import Pool
from lowtide.database.connections import connect
from lowtide.engines.outcomes import Usage
from lowtide.queue.claims import Finished
from lowtide.queue.store import QueueStore
from lowtide.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine

    from lowtide.core.ids import BatchId

SIZE_BAR, STATEMENT_BAR, SPEED_BAR = 1.05, 0.1, 1.2
ANSWER = 1200
TIMED = 30
PATIENCE = 600.0
BATCH = """
INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint, completion_window,
  status, created_at, deadline, total)
VALUES (:batch, :tenant, 'bench', :batch, 'k', '/v1/chat/completions', '24h', 'in_progress', now(),
  now() + interval '1 day', :lines)
"""
IN_FLIGHT = (
    "SELECT make_partitions(:batch)",
    BATCH,
    """INSERT INTO requests (batch_id, line, tenant_id, start, length, checksum, custom_id)
       SELECT :batch, n, :tenant, n * 400, 400, n, 'request-' || n FROM generate_series(1, :lines) n""",
    """INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size,
         lines, pool)
       SELECT :batch, :tenant, now() + interval '1 day', now(), now(), min(n), count(*),
         range_agg(int4range(n, n + 1)), 'spot'
       FROM generate_series(1, :lines) n GROUP BY (n - 1) / 128""",
    """INSERT INTO custom_ids (batch_id, line, tenant_id, custom_id)
       SELECT :batch, n, :tenant, 'request-' || n FROM generate_series(1, :lines) n""",
)
ENDED = (
    "DELETE FROM queued_runs WHERE batch_id = :batch",
    """INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
         output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered,
         pool, request_id, body)
       SELECT :batch, :tenant, :batch, now(), now(), n, 20, 40, 200, 1, 0, true, false, false, 'spot',
         'req-' || n, repeat('x', :answer) FROM generate_series(1, :lines) n""",
    """INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, completed)
       SELECT :batch, 'spot', gen_random_uuid(), :tenant, :lines / 20 FROM generate_series(1, 20)""",
    """UPDATE batches SET status = 'completed', completed = :lines,
         completed_at = now() - interval '35 days' WHERE id = :batch""",
)


class Bench:
    """An installation to measure."""

    def __init__(self, stage: Stage, owner: Engine) -> None:
        os.environ.update(
            {k: v for k, v in stage.environment("worker").items() if k.startswith("LOWTIDE_")}
        )
        self.app = App(read_settings())
        self._owner = owner
        self.longest = 0.0
        self.ticks = 0

    def run(self, statements: Sequence[str], batch: BatchId, lines: int) -> None:
        """Run statements about a batch, each in a transaction of its own."""
        values = {"batch": batch, "tenant": DEFAULT_TENANT, "lines": lines, "answer": ANSWER}
        for statement in statements:
            names = {name: value for name, value in values.items() if f":{name}" in statement}
            with self.app.database.begin() as connection:
                connection.execute(text(statement), names)

    def size(self) -> int:
        """Return the size of the database, after what autovacuum does."""
        with self._owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(
                text("VACUUM (ANALYZE) queued_runs, claimed_runs, batches, tallies, outbox")
            )
            return int(
                connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
            )

    def pass_batch(self, lines: int) -> tuple[int, int]:
        """Let a batch of forty days ago come and end; return what it added in flight, and ended."""
        batch: Any = uuid7(datetime.now(UTC) - timedelta(days=40), os.urandom)
        before = self.size()
        self.run(IN_FLIGHT, batch, lines)
        in_flight = self.size() - before
        self.run(ENDED, batch, lines)
        return in_flight, self.size() - before

    def end(self) -> float:
        """Tick until the data is dropped; return the seconds of the longest tick.

        A drop waits for a vacuum of the new rows, which a month later would be over.
        """
        longest, deadline = 0.0, time.monotonic() + PATIENCE
        while self._has_data():
            if time.monotonic() > deadline:
                raise SystemExit("The data did not go.")
            self.ticks += 1
            began = time.perf_counter()
            self.app.scheduler.tick()
            longest = max(longest, time.perf_counter() - began)
            with self.app.database.begin() as connection:
                connection.execute(
                    text("UPDATE batches SET data_ended_at = data_ended_at - interval '2 minutes'")
                )
            time.sleep(0.5)
        return longest

    def _has_data(self) -> bool:
        with self.app.database.begin() as connection:
            left = "SELECT EXISTS (SELECT FROM batches WHERE NOT data_deleted AND completed_at < now())"
            return bool(connection.execute(text(left)).scalar_one())

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Note the longest statement or commit."""
        began = [0.0]

        def starts(*_: Any) -> None:
            began[0] = time.perf_counter()

        def ends(*_: Any) -> None:
            self.longest = max(self.longest, time.perf_counter() - began[0])

        database = self.app.database
        event.listen(database, "before_cursor_execute", starts)
        event.listen(database, "after_cursor_execute", ends)
        yield
        event.remove(database, "before_cursor_execute", starts)
        event.remove(database, "after_cursor_execute", ends)

    def speeds(self) -> dict[str, float]:
        """Return the milliseconds of a tick, of the landing page, and of a claim of 200 requests."""
        batch: Any = new_id()
        self.run(IN_FLIGHT, batch, TIMED * 400)
        queue = QueueStore(self.app.database, new_id=new_id, lease_duration=600.0)
        lease = queue.open_lease(Pool.SPOT, "bench")

        def claim() -> None:
            claims = queue.claim(lease, Pool.SPOT, 200)
            usage = Usage(20, 40)
            queue.settle(
                lease,
                [Finished(c.batch, c.line, True, 1, usage, 200, "r", b"{}") for c in claims],
                [],
            )

        measured = {
            "claim and settle": _best(claim),
            "tick": _best(self.app.scheduler.tick),
            "landing page": _best(lambda: self.app.snapshots.read(for_metrics=False)),
        }
        queue.close_lease(lease)
        self.run(("DELETE FROM queued_runs WHERE batch_id = :batch", *_FORGET), batch, 0)
        return measured


_FORGET = [
    f"DELETE FROM {table} WHERE {key} = :batch"  # noqa: S608
    for table, key in (
        ("requests", "batch_id"),
        ("results", "batch_id"),
        ("custom_ids", "batch_id"),
        ("tallies", "batch_id"),
        ("batches", "id"),
    )
]


def _best(action: Callable[[], object]) -> float:
    """Return the milliseconds of the fastest run: what other processes do slows the others."""

    def once() -> float:
        began = time.perf_counter()
        action()
        return (time.perf_counter() - began) * 1000

    return min(once() for _ in range(TIMED))


def by_days(owner: Engine) -> None:
    """Give every day its own partitions, as if the migration were long ago."""
    with owner.begin() as connection:
        names = connection.execute(text("SELECT name FROM data_partitions WHERE low IS NULL"))
        connection.execute(text(f"DROP TABLE {', '.join(names.scalars())}"))
        connection.execute(text("SELECT make_partitions(first_id(current_date))"))


def measure(bench: Bench, batches: int, lines: int) -> dict[str, Any]:
    """Let batches come, end and go; return the figures."""
    bench.pass_batch(lines)
    bench.end()
    speeds_before = bench.speeds()
    before = bench.size()
    added = [bench.pass_batch(lines) for _ in range(batches)]
    largest = bench.size()
    with bench.timed():
        tick = bench.end()
    after = bench.size()
    speeds = bench.speeds()
    return {
        "batches": batches,
        "lines": lines,
        "bytes_in_flight": round(statistics.median(each[0] for each in added) / lines),
        "bytes_ended": round(statistics.median(each[1] for each in added) / lines),
        "bytes_after": round((after - before) / (batches * lines), 2),
        "size_before": before,
        "size_largest": largest,
        "size_after": after,
        "size_ratio": round(after / before, 3),
        "longest_statement_ms": round(bench.longest * 1000, 1),
        "longest_tick_s": round(tick, 2),
        "speeds_before_ms": {name: round(value, 1) for name, value in speeds_before.items()},
        "speeds_ms": {name: round(value, 1) for name, value in speeds.items()},
        "ratios": {name: round(speeds[name] / speeds_before[name], 2) for name in speeds},
    }


def missed(found: dict[str, Any]) -> list[str]:
    """Return the bars that figures miss."""
    slow = [
        f"{name}: {ratio} times" for name, ratio in found["ratios"].items() if ratio > SPEED_BAR
    ]
    return [
        *([f"size: {found['size_ratio']} times"] if found["size_ratio"] > SIZE_BAR else []),
        *(
            [f"a statement of {found['longest_statement_ms']} ms"]
            if found["longest_statement_ms"] > STATEMENT_BAR * 1000
            else []
        ),
        *slow,
    ]


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--lines", type=int, default=50_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        owner = connect(stage.url("owner"))
        by_days(owner)
        bench = Bench(stage, owner)
        found = measure(bench, given.batches, given.lines)
        bench.app.database.dispose()
        owner.dispose()
    for name, value in found.items():
        print(f"{name:<22} {value}")
    found["missed"] = missed(found)
    print(json.dumps(found))
    sys.exit(bool(found["missed"]))


if __name__ == "__main__":
    main()
