"""Batches that end early: cancelled, or past their completion window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests import oracle
from tests.conformance.conftest import ANSWERED
from tests.conformance.features import Area, proves
from tests.conformance.lines import held, jsonl, requests
from tests.conformance.server import FINAL
from tests.conformance.shapes import check_batch
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from tests.conformance.conftest import Ended
    from tests.conformance.server import Official, Own, Server
    from tests.oracle import InputLine

ANSWERED_IDS = [line["custom_id"] for line in ANSWERED]


def _any_answer(line: InputLine, body: Any) -> None:
    assert body["model"] == line.body["model"]


def _check(ended: Ended, status: str, code: str) -> None:
    """Assert that answered requests are in the output file, and the others in the error file."""
    oracle.check(
        ended.batch, ended.source, ended.output, ended.errors, answers=_any_answer, status=status
    )
    assert [line.custom_id for line in oracle.outcomes(ended.output)] == ANSWERED_IDS
    never_ran = oracle.outcomes(ended.errors)
    assert [line.custom_id for line in never_ran] == [
        line.custom_id
        for line in oracle.input_lines(ended.source)
        if line.custom_id not in ANSWERED_IDS
    ]
    assert {line.error["code"] for line in never_ran if line.error} == {code}
    assert all(line.body is None for line in never_ran)
    assert ended.batch["x_lowtide"]["outcomes"][status] == len(never_ran)
    for state in ended.history:
        check_batch(state)


def _until_running(server: Server, batch: dict[str, Any]) -> None:
    path = f"/v1/batches/{batch['id']}/requests"
    until(lambda: server.json(path, status="Running")["data"], "a request runs")


@proves(Area.ENDING, "Cancelled: output of what finished, `batch_cancelled` for the rest")
def test_cancelled_batch_has_output_and_errors(cancelled: Ended) -> None:
    _check(cancelled, "cancelled", "batch_cancelled")


@proves(Area.ENDING, "Cancelled: `cancelling`, then `cancelled`, with a timestamp each")
def test_cancelled_batch_was_cancelling_before(cancelled: Ended) -> None:
    cancelling = cancelled.history[2]
    assert (cancelling["status"], cancelling["cancelled_at"]) == ("cancelling", None)
    assert cancelling["cancelling_at"] is not None
    assert {state["status"] for state in cancelled.history[2:]} == {"cancelling", "cancelled"}
    assert cancelled.batch["cancelling_at"] == cancelling["cancelling_at"]
    assert cancelled.batch["cancelled_at"] >= cancelling["cancelling_at"]


@proves(Area.ENDING, "`batches.cancel`")
def test_cancel_ends_batch(official: Official, server: Server) -> None:
    created = server.create(requests(100))
    answer = official(lambda client: client.batches.with_raw_response.cancel(created["id"]))
    batch = check_batch(answer.http_response.json())
    assert answer.parse() == batch
    assert batch.status in {"cancelling", "cancelled"}
    ended = server.finish(created)
    assert ended["status"] == "cancelled"
    output, errors = (server.content(ended[f"{role}_file_id"]) for role in ("output", "error"))
    source = server.content(created["input_file_id"])
    # A batch cancelled before it is split has no requests, and so no files.
    if ended["request_counts"]["total"]:
        oracle.check(ended, source, output, errors, answers=_any_answer, status="cancelled")
    else:
        assert output + errors == b""


@proves(Area.ENDING, "Cancelling twice changes nothing")
def test_second_cancel_changes_nothing(official: Official, server: Server, own: Own) -> None:
    created = server.create(jsonl(*held("cancelled-twice", 1)))
    _until_running(server, created)
    first = official(lambda client: client.batches.cancel(created["id"]))
    second = official(lambda client: client.batches.cancel(created["id"]))
    assert second.cancelling_at == first.cancelling_at
    assert server.finish(created)["status"] == "cancelled"
    own.engine.release("cancelled-twice")


@proves(Area.ENDING, "Running lines get a grace period when a batch is cancelled")
def test_running_request_completes_in_grace_period(server: Server, own: Own) -> None:
    created = server.create(jsonl(*held("grace", 1)))
    _until_running(server, created)
    server.cancel(created["id"])
    own.engine.release("grace")
    ended = server.finish(created)
    assert (ended["status"], ended["request_counts"]["completed"]) == ("cancelled", 1)


@proves(Area.ENDING, "A batch that is over cannot be cancelled: 409")
def test_completed_batch_cannot_be_cancelled(official: Official, completed: Ended) -> None:
    with pytest.raises(openai.ConflictError) as refused:
        official(lambda client: client.batches.cancel(completed.batch["id"]))
    assert refused.value.code == "batch_not_cancellable"


@proves(Area.ENDING, "Expired: output of what finished, `batch_expired` for the rest")
def test_expired_batch_has_output_and_errors(expired: Ended) -> None:
    _check(expired, "expired", "batch_expired")


@proves(Area.ENDING, "Expired: not before `expires_at`, with a timestamp")
def test_batch_expires_no_earlier_than_its_deadline(expired: Ended) -> None:
    assert expired.batch["expired_at"] >= expired.batch["expires_at"]
    assert expired.batch["expires_at"] == expired.batch["created_at"] + 60
    assert {state["status"] for state in expired.history} - FINAL <= {"validating", "in_progress"}
    assert expired.batch["x_lowtide"]["sla_state"] == "Missed"


@proves(Area.ENDING, "A batch that is over cannot be cancelled: 409")
def test_expired_batch_cannot_be_cancelled(official: Official, expired: Ended) -> None:
    with pytest.raises(openai.ConflictError):
        official(lambda client: client.batches.cancel(expired.batch["id"]))
