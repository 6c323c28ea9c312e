"""Reruns: the failed requests of an ended batch run again in one new batch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.batches.store import BatchStore
from lowtide.core.errors import (
    Conflict,
    IdempotencyKeyReused,
    InvalidRequest,
    LowtideError,
    NotFound,
    Unavailable,
)
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId, TenantId, format_batch_id, new_id, now
from lowtide.core.pools import Pool
from lowtide.dead_letters.copies import Copies, CopyRules
from lowtide.dead_letters.model import LetterFilter, LetterId
from lowtide.dead_letters.requeue import Requeuer, RequeueRequest
from lowtide.dead_letters.requeue_store import RequeueStore
from lowtide.dead_letters.store import DeadLetterStore
from lowtide.files.store import FileStore
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.finalize import Finalizer
from lowtide.reruns import store as rerun_store
from lowtide.reruns.service import RerunRequest, Reruns
from lowtide.reruns.store import Failure, RerunStore
from tests.dead_letters.letters import batch_of_lines, custom_ids, dead, source_lines
from tests.fleets.single import SINGLE
from tests.worker.workers import Sink, WaitingPublisher
from tests.worlds import PRICES, Running, done, gate, together

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from lowtide.reruns.service import Rerun
    from tests.worlds import World

RULES = CopyRules(
    shortest_window=60,
    longest_window=604_800,
    file_expiry=86_400,
    fleets=SINGLE,
    currency=PRICES.currency,
)


@dataclass
class Services:
    """The services on a database and a store."""

    world: World
    store: ObstoreObjects = field(default_factory=lambda: ObstoreObjects("memory://"))
    sink: Sink = field(default_factory=Sink)

    def __post_init__(self) -> None:
        self.publisher = WaitingPublisher(self.sink, self.world.outbox)
        self.copies = Copies(self.world.files, self.store, RULES, new_id=new_id, clock=now)
        self.reruns = self.reruns_on(self.world.api)
        self.requeuer = Requeuer(
            DeadLetterStore(self.world.api),
            RequeueStore(self.world.api),
            self.copies,
            self.publisher,
            max_letters=50_000,
        )

    def reruns_on(self, engine: Any) -> Reruns:
        return Reruns(
            RerunStore(engine),
            DeadLetterStore(engine),
            BatchStore(engine),
            FileStore(engine),
            self.store,
            self.copies,
            self.publisher,
        )

    def batch(
        self,
        count: int = 9,
        *,
        failed: Collection[int] = (1,),
        letters: Collection[int] = (2, 3),
        unfinished: Collection[int] = (),
        ends: str = "completed",
        **changes: Any,
    ) -> BatchId:
        """Return a batch that ended with these failed, dead-lettered and unfinished requests."""
        world = self.world
        tenant = changes.pop("tenant", DEFAULT_TENANT)
        batch = batch_of_lines(world, self.store, source_lines(count), tenant, **changes)
        lease = world.queue.open_lease(Pool.SPOT, "w")
        claims = world.queue.claim(lease, Pool.SPOT, count)
        results = [
            dead(claim)
            if claim.line in letters
            else done(claim, succeeded=claim.line not in failed)
            for claim in claims
            if claim.line not in unfinished
        ]
        world.queue.settle(lease, results, [])
        if ends == "cancelled":
            world.cancel(batch, tenant)
        elif ends == "expired":
            world.run("UPDATE batches SET deadline = now() - interval '1 s' WHERE id = :b", b=batch)
        world.run("UPDATE workers SET expires_at = now() - interval '1 s' WHERE id = :id", id=lease)
        world.sweep(cancel_grace=0)
        if ends != "running":
            Finalizer(
                world.finals, JoinedObjects(self.store), self.publisher, new_id=new_id
            ).finalize(batch)
            assert world.row(batch).status == ends
        self.sink.sent.clear()
        return batch

    def rerun(self, batch: BatchId, tenant: TenantId = DEFAULT_TENANT, **options: Any) -> Rerun:
        return self.reruns.rerun(tenant, RerunRequest(batch, "key", **options))

    def content(self, batch: BatchId) -> bytes:
        """Return the bytes of a batch's input."""
        return b"".join(self.store.stream(self.world.row(batch).input_key))

    def letters(self) -> list[tuple[int, str, Any]]:
        return [
            (row.line, row.state, row.requeued_as)
            for row in self.world.rows("SELECT * FROM dead_letters ORDER BY batch_id, line")
        ]

    def audit(self) -> list[tuple[str, str, str]]:
        with self.world.database.engine("operator").begin() as connection:
            rows = connection.execute(
                text("SELECT actor, action, subject FROM audit_log ORDER BY id")
            )
            return [(row.actor, row.action, row.subject) for row in rows]


@pytest.fixture
def services(world: World) -> Services:
    """Services on an empty database."""
    return Services(world)


def _lines(numbers: Sequence[int], count: int = 9) -> bytes:
    """Return the expected bytes of a file of these lines."""
    whole = source_lines(count)
    return b"".join(whole[number - 1].strip(b" \t\r") + b"\n" for number in numbers)


def test_rerun_creates_one_batch_of_all_failed_requests(services: Services) -> None:
    world = services.world
    source = services.batch(
        failed=(1, 5), letters=(2, 9), completion_window="2h", user="ada", metadata={"team": "x"}
    )
    before = world.row(source)
    rerun = services.rerun(source)
    assert (rerun.source, rerun.requests) == (source, 4)
    row = world.row(rerun.batch)
    assert (row.status, row.endpoint, row.user_id) == ("validating", "/v1/embeddings", "ada")
    assert (row.completion_window, (row.deadline - row.created_at).total_seconds()) == ("2h", 7200)
    assert row.metadata == {"team": "x", "rerun_of": format_batch_id(source)}
    assert services.content(rerun.batch) == _lines([1, 2, 5, 9])
    file = world.files.get(DEFAULT_TENANT, FileId(row.input_file_id))
    assert (file.lines, file.filename) == (4, f"{format_batch_id(source)}_failed.jsonl")
    assert services.letters() == [(line, "requeued", rerun.batch) for line in (2, 9)]
    assert [event.subject for event in services.sink.sent] == [format_batch_id(rerun.batch)]
    subject = f"{format_batch_id(source)}: 4 requests as {format_batch_id(rerun.batch)}"
    assert services.audit() == [("key", "batches.rerun", subject)]
    assert world.row(source) == before
    assert world.orphans() == []


@pytest.mark.parametrize(
    ("ends", "outcomes", "expected"),
    [
        pytest.param("expired", list(Failure), [1, 2, 3, 7, 8], id="expired, all"),
        pytest.param("expired", [Failure.EXPIRED], [7, 8], id="expired alone"),
        pytest.param("expired", [Failure.FAILED], [1, 2, 3], id="failed alone"),
        pytest.param("cancelled", list(Failure), [1, 2, 3, 7, 8], id="cancelled, all"),
        pytest.param("cancelled", [Failure.CANCELLED], [7, 8], id="cancelled alone"),
        pytest.param("cancelled", [Failure.FAILED, Failure.EXPIRED], [1, 2, 3], id="other two"),
    ],
)
def test_outcomes_select_requests(
    services: Services, ends: str, outcomes: list[Failure], expected: list[int]
) -> None:
    source = services.batch(unfinished=(7, 8), ends=ends)
    counts = services.reruns.plan(DEFAULT_TENANT, source).counts
    assert sum(counts[outcome] for outcome in outcomes) == len(expected)
    content = b"".join(services.reruns.inputs(DEFAULT_TENANT, source, outcomes, actor="key"))
    assert content == _lines(expected)
    rerun = services.rerun(source, outcomes=frozenset(outcomes))
    assert services.content(rerun.batch) == _lines(expected)
    requeued = {state for _, state, _ in services.letters()} == {"requeued"}
    assert requeued is (Failure.FAILED in outcomes)


def test_pages_are_joined(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerun_store, "_LIMIT", 2)
    source = services.batch(failed=(1, 4, 6), letters=(2, 5), unfinished=(3, 8), ends="expired")
    rerun = services.rerun(source)
    assert services.content(rerun.batch) == _lines([1, 2, 3, 4, 5, 6, 8])
    assert [line for line, state, _ in services.letters() if state == "requeued"] == [2, 5]


def test_handled_dead_letters_do_not_run_again(services: Services) -> None:
    source = services.batch(failed=(1,), letters=(2, 3))
    letters = [LetterId(source, 2)]
    services.requeuer.requeue(DEFAULT_TENANT, RequeueRequest(letters, actor="key"))
    plan = services.reruns.plan(DEFAULT_TENANT, source)
    assert (plan.counts[Failure.FAILED], plan.letters, plan.handled) == (2, 1, 1)
    assert services.content(services.rerun(source).batch) == _lines([1, 3])


def test_dead_letters_run_again_once_without_key(services: Services) -> None:
    source = services.batch(failed=(), letters=(2, 3))
    services.rerun(source)
    with pytest.raises(Conflict, match="except 2 dead letters") as error:
        services.rerun(source)
    assert error.value.code == "no_failed_requests"


def test_retry_with_same_key_returns_same_batch(services: Services) -> None:
    source = services.batch()
    options: dict[str, Any] = {"idempotency_key": "k", "idempotency_digest": b"1"}
    first = services.rerun(source, **options)
    assert services.rerun(source, **options) == first
    assert services.world.value("SELECT count(*) FROM batches") == 2
    with pytest.raises(IdempotencyKeyReused):
        services.rerun(source, **(options | {"idempotency_digest": b"2"}))


@pytest.mark.parametrize("letters", [(), (2, 3)], ids=["failed", "dead letters"])
def test_concurrent_calls_with_one_key_create_one_batch(
    services: Services, letters: Sequence[int]
) -> None:
    source = services.batch(failed=(1,), letters=letters)
    first, second = together(
        *[lambda: services.rerun(source, idempotency_key="k", idempotency_digest=b"1")] * 2
    )
    assert first == second
    assert services.world.value("SELECT count(*) FROM batches") == 2
    assert services.world.value("SELECT count(*) FROM files WHERE purpose = 'batch'") == 2


def test_dead_letters_requeued_meanwhile_are_left_out(services: Services) -> None:
    source = services.batch(failed=(1,), letters=(2, 3))
    engine = services.world.own_engine("api")
    reruns = services.reruns_on(engine)
    with gate(engine, before="pg_advisory_xact_lock") as hold:
        call = Running(lambda: reruns.rerun(DEFAULT_TENANT, RerunRequest(source, "key")))
        hold.wait()
        services.requeuer.requeue(DEFAULT_TENANT, RequeueRequest(LetterFilter(source), "key"))
        hold.opened.set()
        rerun = call.result()
    assert services.content(rerun.batch) == _lines([1])
    assert services.world.orphans() == []


def _running(services: Services) -> BatchId:
    return services.batch(unfinished=(8,), ends="running")


def _without_input(services: Services) -> BatchId:
    source = services.batch()
    services.world.files.remove(DEFAULT_TENANT, FileId(services.world.row(source).input_file_id))
    return source


def _changed(services: Services) -> BatchId:
    source = services.batch()
    with services.store.open_writer(services.world.row(source).input_key) as writer:
        writer.write(b"x" * 5000)
    return source


def _of_other_tenant(services: Services) -> BatchId:
    return services.batch(tenant=services.world.tenant("other"))


@pytest.mark.parametrize(
    ("make", "error", "code"),
    [
        pytest.param(_running, Conflict, "batch_not_ended", id="running"),
        pytest.param(_without_input, Conflict, "input_file_gone", id="input deleted"),
        pytest.param(_changed, Conflict, "input_corrupt", id="input changed"),
        pytest.param(_of_other_tenant, NotFound, "not_found", id="another tenant's"),
        pytest.param(lambda _: BatchId(new_id()), NotFound, "not_found", id="unknown"),
    ],
)
def test_refused_rerun_changes_nothing(
    services: Services,
    make: Callable[[Services], BatchId],
    error: type[LowtideError],
    code: str | None,
) -> None:
    source = make(services)
    before = services.world.rows("SELECT * FROM batches ORDER BY id"), services.letters()
    with pytest.raises(error) as caught:
        services.rerun(source)
    assert caught.value.code == code
    after = services.world.rows("SELECT * FROM batches ORDER BY id"), services.letters()
    assert after == before


def test_operators_role_is_limited_to_tenant_too(services: Services) -> None:
    """Row-level security does not limit this role: the statements name the tenant."""
    reruns = services.reruns_on(services.world.database.engine("operator"))
    source = _of_other_tenant(services)
    with pytest.raises(NotFound):
        reruns.rerun(DEFAULT_TENANT, RerunRequest(source, "key"))
    with pytest.raises(NotFound):
        next(reruns.inputs(DEFAULT_TENANT, source, actor="key"))


def test_window_is_checked(services: Services) -> None:
    with pytest.raises(InvalidRequest):
        services.rerun(services.batch(), completion_window="1s")


def test_limit_of_tenant_leaves_no_file(services: Services) -> None:
    tenant = services.world.tenant("other")
    source = services.batch(tenant=tenant)
    with services.world.database.engine("owner").begin() as connection:
        connection.execute(text("UPDATE tenants SET max_queued_lines = 1 WHERE name = 'other'"))
    with pytest.raises(InvalidRequest) as error:
        services.rerun(source, tenant)
    assert error.value.code == "too_many_lines"
    assert services.world.orphans() == []
    assert services.letters() == [(2, "open", None), (3, "open", None)]


def test_lost_answer_keeps_file_for_scheduler(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = services.batch()
    record = RerunStore.record

    def committed(*arguments: Any, **options: Any) -> bool:
        record(*arguments, **options)
        raise Unavailable("lost")

    monkeypatch.setattr(RerunStore, "record", committed)
    with pytest.raises(Unavailable):
        services.rerun(source, idempotency_key="k", idempotency_digest=b"1")
    rerun = services.rerun(source, idempotency_key="k", idempotency_digest=b"1")
    assert services.content(rerun.batch) == _lines([1, 2, 3])


def test_download_is_audited(services: Services) -> None:
    source = services.batch()
    content = b"".join(
        services.reruns.inputs(DEFAULT_TENANT, source, [Failure.FAILED], actor="key")
    )
    assert custom_ids(content) == [json.loads(line)["custom_id"] for line in source_lines(3)]
    subject = f"{format_batch_id(source)}: inputs of failed"
    assert services.audit() == [("key", "batches.download", subject)]


def test_inputs_past_retention_are_not_read(services: Services) -> None:
    source = services.batch()
    services.world.run("UPDATE batches SET data_ended_at = now() WHERE id = :batch", batch=source)
    with pytest.raises(NotFound) as caught:
        next(services.reruns.inputs(DEFAULT_TENANT, source, actor="key"))
    assert caught.value.code == "data_ended"
    assert services.audit() == []
