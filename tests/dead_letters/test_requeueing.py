"""Requeueing: each dead letter runs again in exactly one new batch, whatever fails meanwhile."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.batches.admission import AdmissionPolicy
from lowtide.core.errors import (
    Conflict,
    IdempotencyKeyReused,
    InvalidRequest,
    LowtideError,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId, TenantId, format_batch_id, new_id, now
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.dead_letters import service as dead_letters_service
from lowtide.dead_letters.copies import Copies, CopyRules
from lowtide.dead_letters.model import LetterFilter, LetterId
from lowtide.dead_letters.requeue import Requeuer, RequeueRequest
from lowtide.dead_letters.requeue_store import RequeueStore
from lowtide.dead_letters.service import Content, DeadLetters
from lowtide.dead_letters.store import DeadLetterStore
from lowtide.files.model import object_key
from lowtide.fleets.model import Fleets
from lowtide.objects.store import ObstoreObjects
from lowtide.planning.demand import Capacity
from lowtide.planning.state import decide
from tests.dead_letters.letters import batch_of_lines, bury, source_lines
from tests.fleets.single import SINGLE
from tests.worker.workers import Sink, WaitingPublisher
from tests.worlds import Running, gate, together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.dead_letters.requeue import RequeueOutcome
    from tests.worlds import World

from tests.worlds import PRICES

CAPACITY = Capacity(rate=10.0, replicas=2, cold_start=60.0, margin=10.0, tick=30.0)
RULES = CopyRules(
    shortest_window=60,
    longest_window=604_800,
    file_expiry=86_400,
    fleets=SINGLE,
    currency=PRICES.currency,
)


@dataclass
class DeadLetterServices:
    """The dead-letter services on a database and a store."""

    world: World
    store: ObstoreObjects = field(default_factory=lambda: ObstoreObjects("memory://"))
    sink: Sink = field(default_factory=Sink)
    rules: CopyRules = RULES
    max_letters: int = 50_000

    def __post_init__(self) -> None:
        self.requeues = RequeueStore(self.world.api)
        self.publisher = WaitingPublisher(self.sink, self.world.outbox)
        self.requeuer = Requeuer(
            DeadLetterStore(self.world.api),
            self.requeues,
            Copies(self.world.files, self.store, self.rules, new_id=new_id, clock=now),
            self.publisher,
            max_letters=self.max_letters,
        )
        self.letters = DeadLetters(
            DeadLetterStore(self.world.api), self.requeues, self.store, max_letters=self.max_letters
        )

    def batch(
        self, count: int = 9, dead: Sequence[int] = (2, 3, 9), **changes: Any
    ) -> tuple[BatchId, list[LetterId]]:
        """Return a batch whose requests `dead` are dead letters, and these."""
        batch = batch_of_lines(self.world, self.store, source_lines(count), **changes)
        return batch, bury(self.world, batch, dead)

    def requeue(
        self,
        selection: Sequence[LetterId] | LetterFilter,
        tenant: TenantId = DEFAULT_TENANT,
        **options: Any,
    ) -> RequeueOutcome:
        return self.requeuer.requeue(tenant, RequeueRequest(selection, actor="key", **options))

    def content(self, batch: BatchId) -> bytes:
        """Return the bytes of a batch's input."""
        return b"".join(self.store.stream(self.world.row(batch).input_key))

    def states(self) -> list[tuple[int, str, Any]]:
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

    def orphans(self) -> list[Any]:
        return self.world.rows("SELECT object_key FROM orphan_objects")


@pytest.fixture
def services(world: World) -> DeadLetterServices:
    """Services on an empty database."""
    return DeadLetterServices(world)


def _lines(numbers: Sequence[int], count: int = 9) -> bytes:
    """Return the expected bytes of a file of these lines."""
    whole = source_lines(count)
    return b"".join(whole[number - 1].strip(b" \t\r") + b"\n" for number in numbers)


def test_requeue_creates_batch_of_dead_letters(services: DeadLetterServices) -> None:
    world = services.world
    source, letters = services.batch(
        completion_window="2h", user="ada", metadata={"team": "harbour"}, output_expires_after=7200,
        priority=4,
    )  # fmt: skip
    before = (world.row(source), world.rows("SELECT * FROM results ORDER BY line"))
    outcome = services.requeue(letters)
    ((new,),) = (tuple(outcome.batches),)
    assert (outcome.changed, outcome.unchanged, outcome.remaining) == (3, 0, 0)
    assert (new.source, new.letters) == (source, 3)
    assert new.batch is not None
    row = world.row(new.batch)
    assert (row.status, row.endpoint, row.user_id) == ("validating", "/v1/embeddings", "ada")
    assert (row.completion_window, row.output_expires_after, row.priority) == ("2h", 7200, 4)
    assert (row.deadline - row.created_at).total_seconds() == 7200
    assert row.metadata == {"team": "harbour", "dead_letters_of": format_batch_id(source)}
    assert services.content(new.batch) == _lines([2, 3, 9])
    file = world.files.get(DEFAULT_TENANT, FileId(row.input_file_id))
    assert file.filename == f"{format_batch_id(source)}_dead_letters.jsonl"
    assert (file.size, file.lines) == (len(_lines([2, 3, 9])), 3)
    assert services.states() == [(line, "requeued", new.batch) for line in (2, 3, 9)]
    assert (world.row(source), world.rows("SELECT * FROM results ORDER BY line")) == before
    assert [event.subject for event in services.sink.sent] == [format_batch_id(new.batch)]
    subject = f"{format_batch_id(source)}: 3 requests as {format_batch_id(new.batch)} on spot"
    assert services.audit() == [("key", "dead_letters.requeue", subject)]
    assert services.orphans() == []


def test_requeued_file_escapes_unicode_line_separators(services: DeadLetterServices) -> None:
    separators = "\x85\u2028\u2029é"
    line = f'{{"custom_id":"{separators}","method":"POST","url":"/v1/embeddings","body":{{"model":"m"}}}}'
    source = batch_of_lines(services.world, services.store, [line.encode()])
    bury(services.world, source, [1])
    downloads = [
        b"".join(
            services.letters.download(DEFAULT_TENANT, LetterFilter(), Content.INPUT, actor="k")
        )
    ]
    (new,) = services.requeue(LetterFilter()).batches
    assert new.batch is not None
    for content in (*downloads, services.content(new.batch)):
        (only_line,) = content.decode().splitlines()
        assert json.loads(only_line)["custom_id"] == separators


def test_requeued_letters_stay_in_chosen_pool(services: DeadLetterServices) -> None:
    _, letters = services.batch()
    (new,) = services.requeue(letters, pool=Pool.DEDICATED).batches
    assert new.batch is not None
    services.world.split(new.batch, 3)
    assert {row.pool for row in services.world.rows("SELECT pool FROM queue")} == {"dedicated"}
    stored = services.world.batches.get(DEFAULT_TENANT, new.batch)
    assert (stored.pool, stored.pools, stored.escalations) == (Pool.DEDICATED, (Pool.DEDICATED,), 0)
    assert services.audit()[0][2].endswith(f"{format_batch_id(new.batch)} on dedicated")
    planned = services.world.timetable.replan(lambda state: decide(state, CAPACITY))
    assert planned is not None
    assert planned[DEFAULT_FLEET].before[Pool.DEDICATED].queued == 3
    assert planned[DEFAULT_FLEET].returned == 0
    services.world.run("UPDATE batches SET start_pool = 'spot'")
    planned = services.world.timetable.replan(lambda state: decide(state, CAPACITY))
    assert planned is not None
    assert planned[DEFAULT_FLEET].returned == 3, "requests without a chosen pool must return"


def test_letters_of_running_batch_are_requeued(services: DeadLetterServices) -> None:
    source, letters = services.batch(5, [1])
    services.world.run("UPDATE batches SET status = 'in_progress', drained_at = NULL")
    assert services.requeue(letters).changed == 1
    assert services.world.row(source).status == "in_progress"


@pytest.mark.parametrize("window", [None, "30m"])
def test_requeue_keeps_window_unless_given(
    services: DeadLetterServices, window: str | None
) -> None:
    _, letters = services.batch(completion_window="3h")
    (new,) = services.requeue(letters, completion_window=window).batches
    assert new.batch is not None
    assert services.world.row(new.batch).completion_window == (window or "3h")


def test_each_source_gets_its_own_batch(services: DeadLetterServices) -> None:
    first, _ = services.batch(4, [1, 4])
    second, _ = services.batch(6, [5])
    outcome = services.requeue(LetterFilter())
    assert {new.source: new.letters for new in outcome.batches} == {first: 2, second: 1}
    contents = {new.source: services.content(new.batch) for new in outcome.batches if new.batch}
    assert contents == {first: _lines([1, 4]), second: _lines([5])}


@pytest.mark.parametrize(
    ("selection", "changed"),
    [
        pytest.param(LetterFilter(), 3, id="all"),
        pytest.param(LetterFilter(error_code="http_500"), 2, id="code"),
        pytest.param(LetterFilter(error_code="timeout"), 1, id="another code"),
        pytest.param(LetterFilter(error_code="none"), 0, id="no such code"),
        pytest.param(LetterFilter(BatchId(DEFAULT_TENANT)), 0, id="no such batch"),
    ],
)
def test_filter_selects_letters(
    services: DeadLetterServices, selection: LetterFilter, changed: int
) -> None:
    services.batch(4, [1, 4])
    other = batch_of_lines(services.world, services.store, source_lines(2))
    bury(services.world, other, [2], status_code=None)
    for dry_run in (True, False):
        outcome = services.requeue(selection, dry_run=dry_run)
        assert outcome.changed == changed
        assert {new.batch is None for new in outcome.batches} <= {dry_run}
    assert services.requeue(selection).changed == 0


def test_dry_run_changes_nothing(services: DeadLetterServices) -> None:
    _, letters = services.batch()
    before = services.world.contents()
    assert services.requeue(letters, dry_run=True, idempotency_key="k").changed == 3
    assert services.world.contents() == before


def test_repeated_call_returns_same_batch(services: DeadLetterServices) -> None:
    _, letters = services.batch()
    first = services.requeue(letters[:2])
    again = services.requeue(letters[:2])
    assert (again.changed, again.unchanged, again.batches) == (0, 2, first.batches)
    more = services.requeue(letters)
    assert (more.changed, more.unchanged) == (1, 2)
    assert set(first.batches) < set(more.batches)


def test_idempotency_key_returns_result_of_first_call(services: DeadLetterServices) -> None:
    services.batch(4, [1, 4])
    first = services.requeue(LetterFilter(), idempotency_key="once")
    services.batch(4, [2])
    again = services.requeue(LetterFilter(), idempotency_key="once")
    assert (again.changed, again.unchanged, again.batches) == (0, 2, first.batches)
    assert services.requeue(LetterFilter(), idempotency_key="twice").changed == 1


def test_idempotency_key_with_different_body_is_rejected(services: DeadLetterServices) -> None:
    services.batch(4, [1, 4])
    first = services.requeue(LetterFilter(), idempotency_key="once", idempotency_digest=b"a")
    with pytest.raises(IdempotencyKeyReused):
        services.requeue(LetterFilter(), idempotency_key="once", idempotency_digest=b"b")
    again = services.requeue(LetterFilter(), idempotency_key="once", idempotency_digest=b"a")
    assert again.batches == first.batches


@pytest.mark.parametrize("digest", [b"a", b"b"])
def test_concurrent_calls_with_same_idempotency_key_requeue_once(
    services: DeadLetterServices, digest: bytes
) -> None:
    _, letters = services.batch(4, [1, 4])
    _, others = services.batch(4, [2])
    slow = DeadLetterServices(services.world, services.store, services.sink)
    engine = services.world.own_engine("api")
    slow.requeuer._requeues = RequeueStore(engine)
    requeue_once = partial(DeadLetterServices.requeue, idempotency_key="once")
    # The call has found the key unused, and is about to requeue the letters.
    with gate(engine, before="pg_advisory_xact_lock") as stopped:
        call = Running(partial(requeue_once, slow, letters, idempotency_digest=b"a"))
        stopped.wait()
        first = requeue_once(services, others, idempotency_digest=digest)
        stopped.opened.set()
        if digest == b"a":
            again = call.result()
            assert (again.changed, again.unchanged, again.batches) == (0, 1, first.batches)
        else:
            with pytest.raises(IdempotencyKeyReused):
                call.result()
    assert [state for _, state, _ in services.states()] == ["open", "open", "requeued"]
    assert services.orphans() == []


@pytest.mark.parametrize("calls", [2, 6])
def test_concurrent_calls_requeue_each_letter_once(
    services: DeadLetterServices, calls: int
) -> None:
    services.batch(20, range(1, 21))
    services.batch(20, range(1, 11))
    work = [partial(services.requeue, LetterFilter()) for _ in range(calls)]
    outcomes = together(*work)
    assert sum(outcome.changed for outcome in outcomes) == 30
    batches = services.world.rows("SELECT id FROM batches WHERE metadata ? 'dead_letters_of'")
    assert len(batches) == sum(len(outcome.batches) for outcome in outcomes)
    requeued_lines = [
        line for row in batches for line in services.content(BatchId(row.id)).splitlines()
    ]
    assert len(requeued_lines) == 30
    assert services.orphans() == []
    assert services.world.value("SELECT count(*) FROM files") == 2 + len(batches)


def test_concurrent_discard_and_requeue_take_different_letters(
    services: DeadLetterServices,
) -> None:
    _, letters = services.batch(40, range(1, 41))
    requeued, discarded = together(
        partial(services.requeue, letters),
        partial(services.letters.discard, DEFAULT_TENANT, letters[::-1], actor="other"),
    )
    states = [state for _, state, _ in services.states()]
    assert states.count("requeued") == requeued.changed
    assert states.count("discarded") == discarded.changed
    assert requeued.changed + discarded.changed == 40


def test_letter_discarded_during_requeue_is_left_out(services: DeadLetterServices) -> None:
    world = services.world
    _, letters = services.batch()
    slow = DeadLetterServices(world, services.store, services.sink)
    engine = world.own_engine("api")
    slow.requeuer._requeues = RequeueStore(engine)
    with gate(engine, before="pg_advisory_xact_lock") as stopped:
        call = Running(lambda: slow.requeue(letters))
        stopped.wait()
        services.letters.discard(DEFAULT_TENANT, letters[:1], actor="other")
        stopped.opened.set()
        outcome = call.result()
    assert (outcome.changed, outcome.unchanged) == (2, 1)
    assert services.content(outcome.batches[0].batch) == _lines([3, 9])
    assert services.orphans() == []


class _KilledError(BaseException):
    """Death of the process."""


def _dies(*_: Any, **__: Any) -> Any:
    raise _KilledError


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("store", "open_writer"),
        ("store", "read_ranges"),
        ("requeues", "requeue"),
        ("publisher", "publish"),
    ],
)
def test_requeue_can_be_repeated_after_crash_at_any_step(
    services: DeadLetterServices, monkeypatch: pytest.MonkeyPatch, part: str, method: str
) -> None:
    _, letters = services.batch()
    with monkeypatch.context() as patch:
        patch.setattr(getattr(services, part), method, _dies)
        with pytest.raises(_KilledError):
            services.requeue(letters)
    committed = method == "publish"
    assert {state for _, state, _ in services.states()} == {"requeued" if committed else "open"}
    assert len(services.orphans()) == (0 if committed else 1)
    outcome = services.requeue(letters)
    assert (outcome.changed, outcome.unchanged) == ((0, 3) if committed else (3, 0))
    (new,) = outcome.batches
    assert new.batch is not None
    assert services.content(new.batch) == _lines([2, 3, 9])
    assert sum(services.world.events(new.batch).values()) == (1 if committed else 0)
    # The scheduler deletes only the orphans of the dead process.
    services.world.run("UPDATE orphan_objects SET due_at = now()")
    services.store.delete(services.world.ticks.orphans(10).keys)
    assert services.content(new.batch) == _lines([2, 3, 9])


def test_retry_after_lost_response_returns_same_batch(
    services: DeadLetterServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, letters = services.batch()
    real = services.requeues.requeue

    def commits_and_fails(*arguments: Any, **named: Any) -> bool:
        real(*arguments, **named)
        raise Unavailable("The database went away.")

    with monkeypatch.context() as patch:
        patch.setattr(services.requeues, "requeue", commits_and_fails)
        with pytest.raises(Unavailable):
            services.requeue(letters)
    outcome = services.requeue(letters)
    assert (outcome.changed, outcome.unchanged) == (0, 3)
    (new,) = outcome.batches
    assert new.batch is not None
    assert services.content(new.batch) == _lines([2, 3, 9])
    assert sum(services.world.events(new.batch).values()) == 1


@pytest.mark.parametrize("lost", ["file", "object"])
def test_letters_without_input_are_not_requeued(services: DeadLetterServices, lost: str) -> None:
    world = services.world
    source, letters = services.batch()
    key = world.row(source).input_key
    if lost == "file":
        world.run("UPDATE batches SET status = 'completed', completed_at = now()")
        world.files.remove(DEFAULT_TENANT, FileId(world.row(source).input_file_id))
        world.files.removed(DEFAULT_TENANT, key)
    services.store.delete([key])
    for dry_run in (True, False) if lost == "file" else (False,):
        with pytest.raises(Conflict, match=format_batch_id(source)) as error:
            services.requeue(letters, dry_run=dry_run)
        assert error.value.code == "input_file_gone"
    assert {state for _, state, _ in services.states()} == {"open"}
    assert world.value("SELECT count(*) FROM batches") == 1
    assert services.letters.discard(DEFAULT_TENANT, letters, actor="key").changed == 3


@pytest.mark.parametrize("block", [4 << 20, 16], ids=["together", "in pieces"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data.replace(b'"m"', b'"\xff"'), id="not UTF-8"),
        pytest.param(lambda data: data.replace(b'"m"', b'"7"'), id="other text"),
        pytest.param(lambda data: data[:-20], id="cut short"),
        pytest.param(lambda _: b"", id="emptied"),
    ],
)
def test_letters_with_corrupt_input_are_not_requeued(
    services: DeadLetterServices,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytes], bytes],
    block: int,
) -> None:
    monkeypatch.setattr(dead_letters_service, "_BLOCK_BYTES", block)
    source, letters = services.batch()
    _, intact = services.batch(4, [1])
    key = services.world.row(source).input_key
    content = b"".join(services.store.stream(key))
    with services.store.open_writer(key) as writer:
        writer.write(change(content))
    with pytest.raises(Conflict, match=format_batch_id(source)) as error:
        services.requeue(letters)
    assert error.value.code == "input_corrupt"
    with pytest.raises(Conflict, match=format_batch_id(source)):
        b"".join(
            services.letters.download(
                DEFAULT_TENANT, LetterFilter(source), Content.INPUT, actor="k"
            )
        )
    assert {state for _, state, _ in services.states()} == {"open"}
    assert services.requeue(intact).changed == 1


def test_one_missing_input_aborts_whole_call(services: DeadLetterServices) -> None:
    services.batch(4, [1])
    lost, _ = services.batch(4, [2])
    services.store.delete([services.world.row(lost).input_key])
    before = services.states()
    with pytest.raises(Conflict):
        services.requeue(LetterFilter())
    assert services.states() == before
    files = {object_key(FileId(row.id)) for row in services.world.rows("SELECT id FROM files")}
    assert len(files) == 2


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("max_queued_lines", 2, InvalidRequest),
        ("max_active_batches", 1, TooManyRequests),
    ],
)
def test_requeue_respects_tenant_limits(
    services: DeadLetterServices, column: str, value: int, error: type[LowtideError]
) -> None:
    _, letters = services.batch()
    set_limit = text(f"UPDATE tenants SET {column} = :value")  # noqa: S608
    engine = services.world.database.engine("owner")
    with engine.begin() as connection:
        connection.execute(set_limit, {"value": value})
    try:
        with pytest.raises(error):
            services.requeue(letters)
        assert {state for _, state, _ in services.states()} == {"open"}
        assert services.orphans() == []
    finally:
        with engine.begin() as connection:
            connection.execute(set_limit, {"value": None})
    assert services.requeue(letters).changed == 3


@pytest.mark.parametrize(
    "closed", [{Pool.DEDICATED}, {Pool.SPOT}, set(Pool)], ids=["dedicated", "spot", "both"]
)
def test_pool_without_replicas_is_rejected(world: World, closed: set[Pool]) -> None:
    (fleet,) = SINGLE
    spot, dedicated = (
        replace(fleet.pool(pool), max_replicas=0) if pool in closed else fleet.pool(pool)
        for pool in (Pool.SPOT, Pool.DEDICATED)
    )
    fleets = Fleets((replace(fleet, spot=spot, dedicated=dedicated),))
    services = DeadLetterServices(world, rules=replace(RULES, fleets=fleets))
    _, letters = services.batch()
    for pool in closed:
        with pytest.raises(Conflict, match=f"LOWTIDE_{pool.upper()}_REPLICAS is 0") as error:
            services.requeue(letters, pool=pool)
        assert (error.value.param, error.value.code) == ("pool", "pool_without_replicas")
        assert services.requeue(letters, dry_run=True).changed == 3
    assert {state for _, state, _ in services.states()} == {"open"}
    assert services.orphans() == []
    for pool in set(Pool) - closed:
        assert f"requeue to {pool}, or" in str(error.value)
        assert services.requeue(letters, pool=pool).changed == 3


def test_strict_admission_rejects_infeasible_requeue(world: World) -> None:
    strict = AdmissionPolicy({DEFAULT_FLEET: replace(CAPACITY, rate=0.01, replicas=1)}, strict=True)
    services = DeadLetterServices(world, rules=replace(RULES, admission=strict))
    _, letters = services.batch(completion_window="5m")
    with pytest.raises(Conflict) as error:
        services.requeue(letters)
    assert error.value.code == "deadline_not_feasible"
    assert {state for _, state, _ in services.states()} == {"open"}
    assert services.orphans() == []
    (new,) = services.requeue(letters, completion_window="2h").batches
    assert new.batch is not None
    assert services.world.row(new.batch).at_risk is False


def test_lenient_admission_marks_batch_at_risk(world: World) -> None:
    policy = AdmissionPolicy({DEFAULT_FLEET: replace(CAPACITY, replicas=0)})
    services = DeadLetterServices(world, rules=replace(RULES, admission=policy))
    _, letters = services.batch()
    (new,) = services.requeue(letters).batches
    assert new.batch is not None
    assert services.world.row(new.batch).at_risk is True


@pytest.mark.parametrize("window", ["8d", "1s", ""])
def test_window_out_of_bounds_is_rejected(services: DeadLetterServices, window: str) -> None:
    _, letters = services.batch()
    with pytest.raises(InvalidRequest) as error:
        services.requeue(letters, completion_window=window)
    assert error.value.param == "completion_window"
    assert {state for _, state, _ in services.states()} == {"open"}


def test_letters_of_other_tenants_are_not_found(services: DeadLetterServices) -> None:
    theirs = services.world.tenant("theirs")
    batch = batch_of_lines(services.world, services.store, source_lines(3), theirs)
    letters = bury(services.world, batch, [1, 2])
    with pytest.raises(NotFound):
        services.requeue(letters)
    with pytest.raises(NotFound):
        services.letters.discard(DEFAULT_TENANT, letters, actor="key")
    assert services.requeue(LetterFilter(batch)).changed == 0
    assert services.letters.discard(DEFAULT_TENANT, LetterFilter(), actor="key").changed == 0
    assert services.requeue(letters, theirs).changed == 2


def test_request_that_is_no_dead_letter_is_not_found(services: DeadLetterServices) -> None:
    source, letters = services.batch()
    with pytest.raises(NotFound):
        services.requeue([*letters, LetterId(source, 1)])
    assert {state for _, state, _ in services.states()} == {"open"}


def test_calls_are_limited_in_letters_and_sources(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = DeadLetterServices(world, max_letters=4)
    _, letters = services.batch(6, range(1, 7))
    with pytest.raises(InvalidRequest, match="at most 4 "):
        services.requeue(letters)
    first = services.requeue(LetterFilter())
    assert (first.changed, first.remaining) == (4, 2)
    assert services.letters.discard(DEFAULT_TENANT, LetterFilter(), actor="key").changed == 2
    monkeypatch.setattr(dead_letters_service, "MAX_SOURCES", 2)
    several = [services.batch(1, [1])[1][0] for _ in range(3)]
    with pytest.raises(InvalidRequest, match="of 3 batches"):
        services.requeue(several)
    outcome = services.requeue(LetterFilter())
    assert (outcome.changed, outcome.remaining, len(outcome.batches)) == (2, 1, 2)
