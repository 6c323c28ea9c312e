"""A database with batches and queries for them, shared by a package and emptied per test."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event, text

from lowtide.batches.model import NewBatch
from lowtide.batches.store import BatchStore
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId, TenantId, new_id
from lowtide.core.pools import DEFAULT_FLEET, Pool, Prices
from lowtide.database.connections import connect
from lowtide.engines.outcomes import Usage
from lowtide.events.model import EventType, batch_event
from lowtide.events.outbox import Outbox
from lowtide.files.index import FileSegment, render_rows
from lowtide.files.lines import InputLine
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.files.store import FileStore
from lowtide.fleets.placement import DEFAULT_PLACEMENT
from lowtide.local.files import SUPERUSER
from lowtide.pipeline.final_store import FinalStore
from lowtide.pipeline.split_store import Index, SplitStore
from lowtide.planning.escalation import Move, Plan
from lowtide.queue.claims import Finished
from lowtide.queue.store import QueueStore
from lowtide.scheduler.plan import PlanStore
from lowtide.scheduler.sweep import SweepStore
from lowtide.search.indexing import SearchIndexer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.pipeline.split_store import SplitTransaction
    from lowtide.planning.state import PlanResult
    from lowtide.queue.claims import Claim
    from tests.conftest import Database

KEPT = {"tenants", "api_keys", "alembic_version", "fleets"}
_CONTENTS = "SELECT t::text FROM {} t ORDER BY 1"
PATIENCE = 60.0
PRICES = Prices(1.0, 3.0, "USD")
MAX_LOST_LEASES = 3
T = TypeVar("T")


def eventually(poll: Callable[[], T], *, within: float = PATIENCE) -> T:
    """Return the first truthy result of `poll`; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        result = poll()
        if result:
            return result
        assert time.monotonic() < deadline, f"no success within {within:g} s"
        threading.Event().wait(0.01)


class Running:
    """A call in its own thread; `result` waits for it and re-raises its exception."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again in `result`
            self._error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert self.is_over, f"still running after {PATIENCE:g} s"
        if self._error is not None:
            raise self._error
        return self._value


def together(*work: Callable[[], Any]) -> list[Any]:
    """Run all calls at the same time, each in a thread; return the results in order."""
    barrier = threading.Barrier(len(work))

    def started(each: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE)
        return each()

    calls = [Running(partial(started, each)) for each in work]
    return [call.result() for call in calls]


@dataclass
class Gate:
    """Block one thread just before a statement or its commit."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def hold(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.opened.wait(PATIENCE)

    def wait(self) -> None:
        assert self.reached.wait(PATIENCE)


@contextmanager
def gate(engine: Engine, *, before: str) -> Iterator[Gate]:
    """Block the first transaction of `engine` that runs `before`, or its commit with "COMMIT"."""
    made = Gate()

    def on_execute(_: Any, __: Any, statement: str, *___: Any) -> None:
        if before in statement:
            made.hold()

    def on_commit(_: Any) -> None:
        made.hold()

    kind, hook = (
        ("commit", on_commit) if before == "COMMIT" else ("before_cursor_execute", on_execute)
    )
    event.listen(engine, kind, hook)
    try:
        yield made
    finally:
        made.opened.set()
        event.remove(engine, kind, hook)


class World:
    """Shortcuts for the stores, connected as their roles in production."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.worker = database.engine("worker")
        self.api = database.engine("api")
        self.queue = self.queue_on(self.worker)
        self.ticks = SweepStore(self.worker, new_id=new_id, max_lost_leases=MAX_LOST_LEASES)
        self.timetable = PlanStore(self.worker, new_id=new_id)
        self.files = FileStore(self.api)
        self.batches = BatchStore(self.api)
        self.splits = SplitStore(self.worker, new_id=new_id)
        self.finals = FinalStore(self.worker, data_kept=30 * 86_400)
        self.outbox = Outbox(self.worker)
        self.indexer = SearchIndexer(self.worker)

    @staticmethod
    def queue_on(engine: Engine, lease_duration: float = 30.0) -> QueueStore:
        return QueueStore(engine, new_id=new_id, lease_duration=lease_duration)

    def own_engine(self, role: str) -> Engine:
        """Return an engine of its own, for a gate to block."""
        made = connect(self.database.url(role), pool_size=4)
        # Each needs its own name: threads call this at the same time, and all must be disposed.
        self.database.engines[f"{role} {new_id()}"] = made
        return made

    @property
    def _superuser(self) -> Engine:
        server = self.database.server
        url = server.url(SUPERUSER, server.cluster.password, self.database.name)
        return self.database.engines.setdefault("superuser", connect(url, pool_size=2))

    # Tenants, files and batches

    def tenant(self, name: str) -> TenantId:
        made = TenantId(new_id())
        with self.database.engine("owner").begin() as connection:
            connection.execute(
                text("INSERT INTO tenants (id, name) VALUES (:id, :name)"),
                {"id": made, "name": name},
            )
        return made

    def file(self, tenant: TenantId = DEFAULT_TENANT, **changes: Any) -> StoredFile:
        id_ = FileId(new_id())
        whole: dict[str, Any] = {
            "id": id_, "tenant": tenant, "purpose": Purpose.BATCH, "filename": "in.jsonl",
            "size": 10, "lines": 1, "sha256": b"x" * 32, "object_key": object_key(id_),
            "status": FileStatus.PROCESSED, "status_details": None, "created_at": datetime.now(UTC),
            "endpoint": "/v1/embeddings",
        }  # fmt: skip
        made = StoredFile(**(whole | changes))
        self.files.add(made)
        return made

    def new_batch(self, tenant: TenantId = DEFAULT_TENANT, **changes: Any) -> BatchId:
        """Create a batch that is not yet split."""
        now = datetime.now(UTC)
        whole: dict[str, Any] = dict.fromkeys(field.name for field in fields(NewBatch)) | {
            "id": BatchId(new_id()), "tenant": tenant, "user": "u",
            "endpoint": "/v1/embeddings", "completion_window": "24h", "created_at": now,
            "deadline": now + timedelta(days=1), "metadata": None, "idempotency_key": None, "pool": Pool.SPOT,
            "prices": PRICES, "placement": DEFAULT_PLACEMENT, "priority": 0,
        }  # fmt: skip
        if "input_file" not in changes:
            changes["input_file"] = self.file(tenant).id
        batch = NewBatch(**(whole | changes))
        self.batches.create(batch, batch_event(new_id(), EventType.BATCH_CREATED, tenant, batch.id))
        return batch.id

    def split(self, batch: BatchId, lines: int) -> bool:
        rows = render_rows(input_lines(lines))
        index = Index((("m", lines),), [FileSegment(lines, 0, len(rows))])
        with self.opened(batch, index) as split:
            if split is None:
                return False
            split.copy([rows])
            return split.start(index, DEFAULT_PLACEMENT, PRICES) is not None

    @contextmanager
    def opened(self, batch: BatchId, index: Index) -> Iterator[SplitTransaction | None]:
        """Open the split of a batch's first segment."""
        job = self.splits.job(batch, 0)
        if job is None:
            yield None
            return
        with self.splits.open(job, index.segments) as split:
            yield split

    def batch(
        self,
        lines: int,
        *,
        tenant: TenantId = DEFAULT_TENANT,
        due_in: float = 86400.0,
        pool: str = "spot",
    ) -> BatchId:
        """Create a batch with queued requests; `due_in` may be negative."""
        deadline = datetime.now(UTC) + timedelta(seconds=due_in)
        made = self.new_batch(tenant, deadline=deadline)
        assert self.split(made, lines)
        if pool != "spot":
            self.run(
                "UPDATE queued_runs SET pool = :pool WHERE batch_id = :batch", pool=pool, batch=made
            )
        return made

    def cancel(self, batch: BatchId, tenant: TenantId = DEFAULT_TENANT) -> bool:
        drained = batch_event(new_id(), EventType.BATCH_DRAINED, tenant, batch)
        return self.batches.cancel(tenant, batch, drained)[1]

    def expire_lease(self, lease: object) -> None:
        self.run("UPDATE workers SET expires_at = now() - interval '1 s' WHERE id = :id", id=lease)

    def apply(self, plan: Plan) -> PlanResult:
        """Apply a plan like a tick."""
        results = self.timetable.replan(lambda _: plan)
        assert results is not None
        return results[DEFAULT_FLEET]

    def escalate(self, batch: BatchId, lines: int) -> int:
        """Move queued requests to dedicated; return their number."""
        return self.apply(Plan(escalations=(Move(batch, lines),))).escalated

    def sweep(self, *, cancel_grace: float = 1e6, stalled_after: float = 1e6) -> int:
        result = self.ticks.sweep(cancel_grace=cancel_grace, stalled_after=stalled_after)
        return result.reaped

    # Queries

    def run(self, sql: str, **parameters: Any) -> None:
        with self.worker.begin() as connection:
            connection.execute(text(sql), parameters)

    def split_runs(self) -> None:
        """Queue each waiting request as a run of its own."""
        self.run(
            """
            WITH removed AS (DELETE FROM queued_runs RETURNING *)
            INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, lines,
              attempts, interruptions, lost_leases, escalated, fleet, pool)
            SELECT batch_id, tenant_id, deadline, available_at, queued_at, l.line,
              int4multirange(int4range(l.line, l.line + 1)), attempts, interruptions, lost_leases,
              escalated, fleet, pool
            FROM removed CROSS JOIN LATERAL lines_in(lines) l (line)
            """
        )

    def rows(self, sql: str, **parameters: Any) -> list[Any]:
        with self.worker.begin() as connection:
            return list(connection.execute(text(sql), parameters).all())

    def value(self, sql: str, **parameters: Any) -> Any:
        with self.worker.begin() as connection:
            return connection.execute(text(sql), parameters).scalar_one()

    def lines(self, table: str, batch: BatchId) -> list[int]:
        """Return the line numbers of a batch in `queue`, `claims`, `results`, …, in order."""
        sql = f"SELECT line FROM {table} WHERE batch_id = :batch ORDER BY line"  # noqa: S608
        return [row.line for row in self.rows(sql, batch=batch)]

    def contents(self) -> dict[str, list[Any]]:
        """Return every row of every table, to compare states."""
        with self._superuser.begin() as connection:
            return {
                table: list(connection.execute(text(_CONTENTS.format(table))).scalars())
                for table in tables(connection)
            }

    def orphans(self) -> list[str]:
        """Return the keys of the objects that would go if every orphan were due."""
        self.run("UPDATE orphan_objects SET due_at = now()")
        return sorted(self.ticks.orphans(1000).keys)

    def row(self, batch: BatchId) -> Any:
        (row,) = self.rows("SELECT * FROM batch_states WHERE id = :batch", batch=batch)
        return row

    def events(self, batch: BatchId) -> Counter[str]:
        """Return the number of events of a batch in the outbox by type."""
        rows = self.rows("SELECT type, data->>'batch_id' AS b FROM outbox")
        return Counter(row.type for row in rows if row.b == f"batch_{batch.hex}")

    def drained(self, batch: BatchId) -> int:
        """Return the number of `batch.drained` events of a batch in the outbox."""
        return self.events(batch)[EventType.BATCH_DRAINED.value]

    def blocked(self, sessions: int = 1) -> None:
        """Wait until at least `sessions` sessions of this database wait for a lock."""
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = :name AND wait_event_type = 'Lock'"
        )
        name = {"name": self.database.name}

        def is_blocked() -> bool:
            with self._superuser.begin() as connection:
                return bool(connection.execute(waiting, name).scalar_one() >= sessions)

        eventually(is_blocked)


def tables(connection: Connection) -> list[str]:
    """Return every table of the schema."""
    sql = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    return list(connection.execute(text(sql)).scalars())


def input_lines(count: int) -> list[InputLine]:
    """Return lines `1`..`count`, each with its number as custom_id and 100 times it as offset."""
    return [InputLine(number, str(number), number * 100, 90) for number in range(1, count + 1)]


def done(
    claim: Claim, *, succeeded: bool = True, body: bytes = b"{}", dead_letter: bool = False
) -> Finished:
    """Return the result of a claimed request: 3 tokens in, 5 out."""
    return Finished(
        claim.batch, claim.line, succeeded=succeeded, attempts=claim.attempts + 1,
        usage=Usage(3, 5), status_code=200 if succeeded else 400, request_id="r", body=body,
        dead_letter=dead_letter,
    )  # fmt: skip


def numbers(claims: Sequence[Claim]) -> list[int]:
    """Return the line numbers of claims."""
    return [claim.line for claim in claims]


def emptied(database: Database) -> Database:
    """Empty a database except for the tenant and the fleet `default`; return it."""
    with database.engine("owner").begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        contents = set(tables(connection)) - KEPT
        connection.execute(text(f"TRUNCATE {', '.join(sorted(contents))}"))
        connection.execute(
            text("DELETE FROM api_keys WHERE tenant_id <> :kept"), {"kept": DEFAULT_TENANT}
        )
        connection.execute(text("DELETE FROM tenants WHERE id <> :kept"), {"kept": DEFAULT_TENANT})
        connection.execute(text("DELETE FROM fleets WHERE name <> :kept"), {"kept": DEFAULT_FLEET})
    return database
