"""The oracle reports every invariant that is broken on purpose."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle
from tests.chaos.exchange import Request, answer, check_answer, input_file
from tests.oracle import Execution, LeaseSample, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

REQUESTS = [Request("t/1/1"), Request("t/1/2"), Request("t/1/3", status=500)]
SOURCE = input_file(REQUESTS)


def _line(request: Request, status: int, body: Any) -> dict[str, Any]:
    return {
        "id": f"batch_req_{request.custom_id}",
        "custom_id": request.custom_id,
        "response": {"status_code": status, "request_id": "r", "body": body},
        "error": None,
    }


class FinishedBatch:
    """A correct finished batch, of which each test breaks one property."""

    def __init__(self) -> None:
        self.output = [_line(one, 200, answer(one.body())) for one in REQUESTS[:2]]
        self.errors = [_line(REQUESTS[2], 500, {"error": {"message": "no"}})]
        used = [line["response"]["body"]["usage"] for line in self.output]
        tokens = [sum(one[f"{kind}_tokens"] for one in used) for kind in ("prompt", "completion")]
        self.object: dict[str, Any] = {
            "status": "completed",
            "request_counts": {"total": 3, "completed": 2, "failed": 1},
            "x_lowtide": {
                "outcomes": {
                    "queued": 0,
                    "running": 0,
                    "completed": 2,
                    "failed": 1,
                    "dead_lettered": 0,
                    "expired": 0,
                    "cancelled": 0,
                },
            },
            "usage": {
                "input_tokens": tokens[0],
                "output_tokens": tokens[1],
                "total_tokens": sum(tokens),
            },
            "output_file_id": "file-1",
            "error_file_id": "file-2",
            "created_at": 1,
            "in_progress_at": 2,
            "finalizing_at": 3,
            "completed_at": 4,
            "expires_at": 9,
            **dict.fromkeys(("failed_at", "expired_at", "cancelling_at", "cancelled_at")),
        }

    def check(self) -> None:
        """Check the batch with the oracle."""
        output, errors = (
            "".join(json.dumps(line) + "\n" for line in lines).encode()
            for lines in (self.output, self.errors)
        )
        oracle.check(self.object, SOURCE, output, errors, answers=check_answer)


def _duplicate(batch: FinishedBatch) -> None:
    batch.output.append(batch.output[0])


def _duplicate_as_error(batch: FinishedBatch) -> None:
    batch.errors.insert(0, _line(REQUESTS[0], 500, {"error": {}}))


def _lose(batch: FinishedBatch) -> None:
    del batch.output[0]


def _swap_answers(batch: FinishedBatch) -> None:
    bodies = [line["response"]["body"] for line in batch.output]
    for line, body in zip(batch.output, reversed(bodies), strict=True):
        line["response"]["body"] = body


def _reorder_output(batch: FinishedBatch) -> None:
    batch.output.reverse()


def _complete_poison(batch: FinishedBatch) -> None:
    batch.output.append(_line(REQUESTS[2], 200, answer(REQUESTS[2].body())))
    batch.errors.clear()
    batch.object["error_file_id"] = None
    batch.object["request_counts"] = {"total": 3, "completed": 3, "failed": 0}
    used = answer(REQUESTS[2].body())["usage"]
    for ours, theirs in (("input", "prompt"), ("output", "completion"), ("total", "total")):
        batch.object["usage"][f"{ours}_tokens"] += used[f"{theirs}_tokens"]


def _miscount(batch: FinishedBatch) -> None:
    batch.object["request_counts"]["completed"] = 3


def _misname(batch: FinishedBatch) -> None:
    batch.object["x_lowtide"]["outcomes"] |= {"failed": 0, "expired": 1}


def _double_usage(batch: FinishedBatch) -> None:
    batch.object["usage"]["input_tokens"] += 5
    batch.object["usage"]["total_tokens"] += 5


def _reorder_timestamps(batch: FinishedBatch) -> None:
    batch.object["finalizing_at"] = 5


def _return_error_as_answer(batch: FinishedBatch) -> None:
    response = batch.output[0]["response"]
    usage = response["body"]["usage"]
    response["body"] = {"error": {"message": "CUDA error"}, "usage": usage}


def test_correct_batch_passes() -> None:
    FinishedBatch().check()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_duplicate, "more than once", id="a request twice in the output"),
        pytest.param(_duplicate_as_error, "more than once", id="a request in both files"),
        pytest.param(_lose, "requests lost", id="a request lost"),
        pytest.param(_swap_answers, "another's answer", id="an answer to another request"),
        pytest.param(_return_error_as_answer, "no answer", id="an error that counts as an answer"),
        pytest.param(_reorder_output, "not in input order", id="output out of order"),
        pytest.param(_complete_poison, "poison", id="a poison request succeeded"),
        pytest.param(_miscount, "'completed': 3", id="counts"),
        pytest.param(_misname, "'expired': 1", id="outcomes"),
        pytest.param(_double_usage, "input_tokens", id="usage counted twice"),
        pytest.param(_reorder_timestamps, "finalizing_at", id="timestamps"),
    ],
)
def test_incorrect_batch_is_reported(damage: Callable[[FinishedBatch], None], message: str) -> None:
    batch = FinishedBatch()
    damage(batch)
    with pytest.raises(AssertionError, match=message):
        batch.check()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"status": "validating"}, id="a status that goes back"),
        pytest.param({"created_at": 2}, id="a timestamp that moves"),
        pytest.param(
            {"request_counts": {"total": 3, "completed": 0, "failed": 1}}, id="counts that fall"
        ),
        pytest.param(
            {"request_counts": {"total": 3, "completed": 3, "failed": 1}}, id="counts over total"
        ),
    ],
)
def test_incorrect_history_is_reported(change: dict[str, Any]) -> None:
    before = FinishedBatch().object | {
        "status": "in_progress",
        "finalizing_at": None,
        "completed_at": None,
    }
    oracle.check_history([before, deepcopy(before), FinishedBatch().object])
    with pytest.raises(AssertionError):
        oracle.check_history([before, before | change])


def test_failure_without_cause_is_reported() -> None:
    failed = [
        Outcome("1", "batch_req_1", None, None, {"code": "batch_cancelled", "message": "m"}, b""),
        Outcome("2", "batch_req_2", 503, {"error": {}}, None, b""),
    ]

    def cancelled(outcome: Outcome) -> bool:
        return (outcome.error or {}).get("code") == "batch_cancelled"

    oracle.check_causes(failed[:1], cancelled)
    with pytest.raises(AssertionError, match="1 innocent requests failed"):
        oracle.check_causes(failed, cancelled)


FIRST = Execution("t/1/1", "infer-spot-1", 11, 100.0, 110.0, "hang")
SECOND = Execution("t/1/1", "infer-spot-2", 22, 104.0, 104.1, "200")


@pytest.mark.parametrize(
    ("first", "second", "samples", "reported"),
    [
        pytest.param(FIRST, SECOND, [(103, 108), (105, 110)], False, id="overlap within slack"),
        pytest.param(
            FIRST, (104.0, 108.0), [(103, 108), (105, 110), (109, 114)], True, id="valid lease"
        ),
        pytest.param(FIRST, (104.0, 108.0), [(98, 103), (105, 103)], False, id="expired lease"),
        pytest.param(
            FIRST,
            (104.0, 108.0),
            [(103, 108), (105, 104), (109, 114)],
            False,
            id="lease expired during overlap",
        ),
        pytest.param(FIRST, (110.5, 112.0), [(103, 108), (113, 118)], False, id="no overlap"),
    ],
)
def test_overlap_is_reported_only_under_valid_lease(
    first: Execution,
    second: Execution | tuple[float, float],
    samples: list[tuple[float, float]],
    reported: bool,
) -> None:
    if isinstance(second, tuple):
        second = Execution("t/1/1", "infer-spot-2", 22, *second, "200")
    leases = [LeaseSample("lease", 11, at, ends) for at, ends in samples]
    if not reported:
        oracle.check_single_lease([second, first], leases)
        return
    with pytest.raises(AssertionError, match="side by side"):
        oracle.check_single_lease([second, first], leases)
    oracle.check_single_lease([second, first], leases, revoked={"t/1/1"})


def test_hot_loop_of_deliveries_is_reported() -> None:
    calm = [(float(at), 20 * at) for at in range(40)]
    oracle.check_rate(calm, 100, "deliveries")
    hot = [*calm, *((40.0 + at, 800 + 470 * at) for at in range(15))]
    with pytest.raises(AssertionError, match="deliveries per second"):
        oracle.check_rate(hot, 100, "deliveries")


def test_access_of_another_tenant_is_reported() -> None:
    oracle.check_hidden({"/batches/1": 404})
    oracle.check_disjoint({"1"}, {"2"})
    with pytest.raises(AssertionError, match="another tenant is answered"):
        oracle.check_hidden({"/batches/1": 404, "/files/1": 200})
    with pytest.raises(AssertionError, match="another's"):
        oracle.check_disjoint({"1", "2"}, {"2"})


def test_replica_time_charged_twice_is_reported() -> None:
    leases = [LeaseSample("a", 1, 100.0, 105.0), LeaseSample("a", 1, 500.0, 505.0)]
    oracle.check_replica_time(400.0, leases)
    with pytest.raises(AssertionError, match="charged"):
        oracle.check_replica_time(700.0, leases)
