"""Parts of the pages of batches, without a browser."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from lowtide.batches.browsing import MAX_CANCELLED, BatchCancellation
from lowtide.batches.model import BatchStatus, Outcomes, RequestStatus, SlaState
from lowtide.batches.results import RequestState
from lowtide.batches.views import MAX_SHOWN, BatchFilter, BatchMark, BatchOrder, Note
from lowtide.core.errors import Conflict, Forbidden, NotFound, Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId, TenantId
from lowtide.core.pools import Pool
from lowtide.core.scopes import Role
from lowtide.planning.reasons import Reason
from lowtide.tenants.sign_in import Principal
from portal.pages.batch_facts import all_failed, eta_of, said, steps_of, tokens, words_of
from portal.pages.batch_requests import exact, row_of
from portal.polling import Readings, Subject, at_most_every
from portal.queries import BatchQuery, LineQuery
from portal.theme import Tone
from tests.portal.test_batch_table import DONE, HOUR, NOW, RUNNING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.batches.model import Batch

OPERATOR, VIEWER = Principal("ana", Role.OPERATOR), Principal("bo", Role.VIEWER)
BATCH = BatchId(UUID(int=7 << 64))


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(BatchQuery(), id="empty"),
        pytest.param(
            BatchQuery(
                statuses=(BatchStatus.FAILED, BatchStatus.CANCELLED),
                sla=(SlaState.AT_RISK,),
                user="a&b=c ü%",
                tenant="x",
                order=BatchOrder.ACTIVE,
                after=str(BatchMark(BATCH, active=True, deadline=NOW)),
                all_failed=True,
            ),
            id="all parameters",
        ),
    ],
)
def test_batch_query_survives_its_address(query: BatchQuery) -> None:
    from urllib.parse import parse_qsl, urlsplit

    parameters = dict(parse_qsl(urlsplit(query.address()).query))
    assert BatchQuery.read(parameters) == query


@pytest.mark.parametrize(
    "parameters",
    [
        {"status": "nonsense", "sla": "x", "order": "; DROP", "after": "a"},
        {"after": f"x{BATCH.hex}1", "user": "\x00 "},
        {"after": f"a{BATCH.hex}"},
        {"after": ""},
    ],
)
def test_invalid_parameters_are_ignored(parameters: dict[str, str]) -> None:
    assert BatchQuery.read(parameters) == BatchQuery()


def test_unknown_tenant_raises_not_found() -> None:
    tenants = {DEFAULT_TENANT: "default"}
    assert BatchQuery(tenant="default").filter(tenants) == BatchFilter(tenant=DEFAULT_TENANT)
    with pytest.raises(NotFound):
        BatchQuery(tenant="other").filter(tenants)


def test_request_query_survives_its_address() -> None:
    query = LineQuery(BATCH, RequestStatus.FAILED, True, after=50, line=7)
    assert query.address().endswith("?status=Failed&dead_lettered=true&after=50&line=7")
    parameters = {"status": "Failed", "dead_lettered": "true", "after": "50", "line": "7"}
    assert LineQuery.read(BATCH, parameters) == query
    assert query.only(RequestStatus.QUEUED) == LineQuery(BATCH, RequestStatus.QUEUED)
    assert not LineQuery.read(BATCH, {"dead_lettered": "true"}).dead_lettered
    invalid = {"status": "x", "after": "-1", "line": "9" * 10}
    assert LineQuery.read(BATCH, invalid) == LineQuery(BATCH)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        pytest.param(
            b'{"b":123456789012345678901234567890,"a":1.50E+400,"b":"\\u003c"}',
            '{\n  "b": 123456789012345678901234567890,\n  "a": 1.50E+400,\n  "b": "\\u003c"\n}',
            id="digits, order, doubles and escapes",
        ),
        pytest.param(b"not json", "not json", id="not JSON"),
        pytest.param(b"\xff{", "\ufffd{", id="not UTF-8"),
        pytest.param(b"", "", id="empty"),
    ],
)
def test_json_is_shown_exactly(content: bytes, shown: str) -> None:
    assert exact(content, len(content)) == shown


def test_long_answer_is_truncated_with_note() -> None:
    whole = MAX_SHOWN + 1500
    for content in (b"x" * whole, b"x" * MAX_SHOWN):
        assert "\n… 1.5 kB truncated: download" in exact(content, whole)


@pytest.mark.parametrize(
    ("batch", "names", "note", "tone"),
    [
        pytest.param(
            RUNNING,
            ["Created", "Started", "Completed", "Deadline"],
            "in 23 h",
            Tone.INFO,
            id="running",
        ),
        pytest.param(
            replace(RUNNING, deadline=NOW - HOUR),
            ["Created", "Started", "Completed", "Deadline"],
            "1 h late",
            Tone.BAD,
            id="late and running",
        ),
        pytest.param(
            replace(DONE, finalizing_at=NOW),
            ["Created", "Started", "Finalizing", "Completed", "Deadline"],
            "met, 23 h to spare",
            Tone.INFO,
            id="met",
        ),
        pytest.param(
            replace(DONE, deadline=NOW - HOUR),
            ["Created", "Started", "Completed", "Deadline"],
            "missed by 1 h",
            Tone.BAD,
            id="missed",
        ),
        pytest.param(
            replace(RUNNING, status=BatchStatus.EXPIRED, expired_at=NOW, deadline=NOW),
            ["Created", "Started", "Expired", "Deadline"],
            "missed",
            Tone.BAD,
            id="expired",
        ),
    ],
)
def test_timeline_has_steps_and_deadline_note(
    batch: object, names: list[str], note: str, tone: Tone
) -> None:
    steps = steps_of(batch, NOW)  # type: ignore[arg-type]
    assert [step.name for step in steps] == names
    assert (steps[-1].note, steps[-1].tone) == (note, tone)


def test_all_failed_and_eta_are_derived_from_batch() -> None:
    assert all_failed(replace(DONE, outcomes=Outcomes(completed=0, failed=2000)))
    assert not all_failed(DONE)
    assert not all_failed(replace(DONE, outcomes=Outcomes(completed=0, failed=0), total=0))
    assert eta_of(RUNNING, NOW) == ""
    assert eta_of(replace(RUNNING, eta=NOW + HOUR), NOW).startswith("Expected to finish in 1 h")


def test_request_row_shows_flags_and_error() -> None:
    state = RequestState(
        1, "id", RequestStatus.FAILED, False, None, 2, 3, True, None, NOW, NOW, 503, None, None
    )
    row = row_of(state)
    assert [flag["text"] for flag in row["flags"]] == ["3 interruptions", "escalated"]
    assert [badge["text"] for badge in row["status"]] == ["Failed"]
    assert row["error"] == "HTTP 503"
    assert row["time"] == "finished 2 Jan 2026, 12:00:00"
    assert row["times"].count("2 Jan 2026, 12:00:00 UTC") == 2
    dead = row_of(replace(state, dead_lettered=True))
    assert [badge["text"] for badge in dead["status"]] == ["Failed", "dead letter"]
    assert row_of(replace(state, error_code="timeout"))["error"] == "timeout"


class _Listing:
    """Lists and cancels open batches; `ended` ones can no longer be cancelled."""

    def __init__(self, count: int, ended: int = 0) -> None:
        self.open = [BatchId(UUID(int=number)) for number in range(count)]
        self.ended = set(self.open[:ended])
        self.actors: list[str | None] = []

    def cancellable(
        self, scope: TenantId | None, wanted: BatchFilter | Sequence[BatchId], *, limit: int
    ) -> list[tuple[TenantId, BatchId]]:
        found = self.open if isinstance(wanted, BatchFilter) else set(wanted) & set(self.open)
        return [(scope or DEFAULT_TENANT, batch) for batch in sorted(found)][:limit]

    def cancel(
        self, _tenant: TenantId, batch: BatchId, _event: object, actor: str | None = None
    ) -> tuple[Batch, bool]:
        if batch in self.ended:
            raise Conflict("over")
        self.actors.append(actor)
        return RUNNING, True

    def publish(self, events: Sequence[object]) -> None:
        assert len(events) == 1


def _cancellation(listing: _Listing) -> BatchCancellation:
    return BatchCancellation(listing, listing, listing, new_id=uuid4)  # type: ignore[arg-type]


def test_plan_changes_nothing_and_cancel_changes_only_the_plan() -> None:
    listing = _Listing(5, ended=2)
    plan = _cancellation(listing).plan(OPERATOR, BatchFilter())
    assert (len(plan.batches), plan.unchanged, plan.more, listing.actors) == (5, 0, False, [])
    assert (
        _cancellation(listing).plan(OPERATOR, [*plan.batches[:1], BatchId(uuid4())]).unchanged == 1
    )
    assert _cancellation(listing).cancel(OPERATOR, plan.batches) == 3
    assert listing.actors == ["ana"] * 3


def test_plan_is_limited_to_max_batches() -> None:
    plan = _cancellation(_Listing(MAX_CANCELLED + 1)).plan(OPERATOR, BatchFilter())
    assert (len(plan.batches), plan.more) == (MAX_CANCELLED, True)


def test_viewer_cannot_plan_or_cancel() -> None:
    listing = _Listing(1)
    with pytest.raises(Forbidden):
        _cancellation(listing).plan(VIEWER, BatchFilter())
    with pytest.raises(Forbidden):
        _cancellation(listing).cancel(VIEWER, listing.open)
    assert listing.actors == []


def test_shared_reading_is_read_once_and_paused_one_never() -> None:
    reads: list[str] = []
    readings = Readings()
    first = readings.follow("a", Subject("x", lambda: reads.append("x")), lambda: False)
    assert readings.follow("b", Subject("x", lambda: reads.append("other")), lambda: False) is first
    readings.follow("c", Subject("y", lambda: reads.append("y")), lambda: True)
    readings.look()
    assert reads == ["x"]
    readings.unfollow("a")
    readings.unfollow("b")
    readings.look()
    assert reads == ["x"]


def test_failing_reading_does_not_block_others(caplog: pytest.LogCaptureFixture) -> None:
    reads: list[str] = []
    readings = Readings()
    readings.follow("a", Subject("x", lambda: 1 // 0), lambda: False)
    readings.follow("b", Subject("y", lambda: reads.append("y")), lambda: False)
    readings.look()
    assert reads == ["y"]
    assert "ZeroDivisionError" in caplog.text


def test_failed_read_keeps_last_value() -> None:
    answers = iter([7])

    def read() -> int:
        try:
            return next(answers)
        except StopIteration:
            raise Unavailable("gone") from None

    subject = Subject("x", read)
    subject.look()
    at = subject.reading.at
    subject.look()
    assert (subject.reading.value, subject.reading.at) == (7, at)
    assert isinstance(subject.reading.problem, Unavailable)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        pytest.param(
            '{"error": {"message": "Too long.", "code": null}}', "Too long.", id="message"
        ),
        pytest.param('{"error": {"code": 7}}', '{"error": {"code": 7}}', id="no message"),
        pytest.param('{"error": "no"}', '{"error": "no"}', id="other shape"),
        pytest.param('{"error": {"message": "cut', '{"error": {"message": "cut', id="truncated"),
        pytest.param("Bad gateway", "Bad gateway", id="text"),
        pytest.param("", "", id="empty"),
    ],
)
def test_error_shows_engine_message(answer: str, shown: str) -> None:
    assert said(answer) == shown


@pytest.mark.parametrize(
    ("kind", "pool", "words"),
    [
        ("interrupted", Pool.SPOT, "Interrupted: why"),
        ("lease_expired", Pool.SPOT, "Lease expired: why"),
    ],
)
def test_event_is_described(kind: str, pool: Pool, words: str) -> None:
    assert words_of(Note(kind, pool, None, 2, "why", NOW)) == words


def test_move_is_described_by_its_reason() -> None:
    note = Note("returned", Pool.SPOT, None, 2, "", NOW, reason=Reason.SPOT_CAUGHT_UP)
    assert words_of(note) == "Returned: Spot has caught up"
    assert words_of(replace(note, kind="on_track", reason=None)) == "On track"


def test_fallback_names_the_fleet() -> None:
    note = Note("escalated", Pool.DEDICATED, None, 2, "cpu", NOW, reason=Reason.FALLBACK)
    assert words_of(note) == "Escalated: Fleet cpu can still hold the deadline"


@pytest.mark.parametrize(
    ("seconds", "readings"),
    [(0.0, [1, 2, 3, 4]), (10.0, [1, 1, 2, 2])],
    ids=["every time", "every 10 s"],
)
def test_expensive_read_is_repeated_less_often(seconds: float, readings: list[int]) -> None:
    times, values = iter([0.0, 9.9, 10.0, 19.0]), iter([1, 2, 3, 4])
    read = at_most_every(seconds, lambda: next(values), clock=lambda: next(times))
    assert [read() for _ in range(4)] == readings


@pytest.mark.parametrize(
    ("cached", "reasoning", "shown"),
    [
        (0, 0, "1,200 / 90"),
        (1000, 0, "1,200 (1,000 cached) / 90"),
        (0, 80, "1,200 / 90 (80 reasoning)"),
        (1000, 80, "1,200 (1,000 cached) / 90 (80 reasoning)"),
    ],
)
def test_tokens_show_cached_and_reasoning_parts(cached: int, reasoning: int, shown: str) -> None:
    batch = replace(
        DONE,
        input_tokens=1200,
        output_tokens=90,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )
    assert tokens(batch) == shown
