"""The oracle sees what is wrong: each invariant is broken once, on purpose, and named."""

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


class World:
    """A batch that is over and right; each test breaks one thing of it."""

    def __init__(self) -> None:
        self.output = [_line(one, 200, answer(one.body())) for one in REQUESTS[:2]]
        self.errors = [_line(REQUESTS[2], 500, {"error": {"message": "no"}})]
        used = [line["response"]["body"]["usage"] for line in self.output]
        tokens = [sum(one[f"{kind}_tokens"] for one in used) for kind in ("prompt", "completion")]
        self.batch: dict[str, Any] = {
            "status": "completed",
            "request_counts": {"total": 3, "completed": 2, "failed": 1},
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
        """Ask the oracle."""
        output, errors = (
            "".join(json.dumps(line) + "\n" for line in lines).encode()
            for lines in (self.output, self.errors)
        )
        oracle.check(self.batch, SOURCE, output, errors, answers=check_answer)


def _twice(world: World) -> None:
    world.output.append(world.output[0])


def _both(world: World) -> None:
    world.errors.insert(0, _line(REQUESTS[0], 500, {"error": {}}))


def _lost(world: World) -> None:
    del world.output[0]


def _swapped(world: World) -> None:
    bodies = [line["response"]["body"] for line in world.output]
    for line, body in zip(world.output, reversed(bodies), strict=True):
        line["response"]["body"] = body


def _disordered(world: World) -> None:
    world.output.reverse()


def _poison_succeeded(world: World) -> None:
    world.output.append(_line(REQUESTS[2], 200, answer(REQUESTS[2].body())))
    world.errors.clear()
    world.batch["error_file_id"] = None
    world.batch["request_counts"] = {"total": 3, "completed": 3, "failed": 0}
    used = answer(REQUESTS[2].body())["usage"]
    for ours, theirs in (("input", "prompt"), ("output", "completion"), ("total", "total")):
        world.batch["usage"][f"{ours}_tokens"] += used[f"{theirs}_tokens"]


def _miscounted(world: World) -> None:
    world.batch["request_counts"]["completed"] = 3


def _used_twice(world: World) -> None:
    world.batch["usage"]["input_tokens"] += 5
    world.batch["usage"]["total_tokens"] += 5


def _out_of_order(world: World) -> None:
    world.batch["finalizing_at"] = 5


def _error_in_output(world: World) -> None:
    response = world.output[0]["response"]
    usage = response["body"]["usage"]
    response["body"] = {"error": {"message": "CUDA error"}, "usage": usage}


def test_a_right_batch_passes() -> None:
    World().check()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_twice, "more than once", id="a request twice in the output"),
        pytest.param(_both, "more than once", id="a request in both files"),
        pytest.param(_lost, "lines lost", id="a request lost"),
        pytest.param(_swapped, "another's answer", id="an answer to another request"),
        pytest.param(_error_in_output, "no answer", id="an error that counts as an answer"),
        pytest.param(_disordered, "not in input order", id="output out of order"),
        pytest.param(_poison_succeeded, "poison", id="a poison request succeeded"),
        pytest.param(_miscounted, "'completed': 3", id="counts"),
        pytest.param(_used_twice, "input_tokens", id="usage counted twice"),
        pytest.param(_out_of_order, "finalizing_at", id="timestamps"),
    ],
)
def test_a_batch_that_is_wrong(damage: Callable[[World], None], message: str) -> None:
    world = World()
    damage(world)
    with pytest.raises(AssertionError, match=message):
        world.check()


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
def test_a_history_that_is_wrong(change: dict[str, Any]) -> None:
    before = World().batch | {
        "status": "in_progress",
        "finalizing_at": None,
        "completed_at": None,
    }
    oracle.check_history([before, deepcopy(before), World().batch])
    with pytest.raises(AssertionError):
        oracle.check_history([before, before | change])


def test_a_failure_without_a_cause() -> None:
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
    ("first", "second", "samples", "wrong"),
    [
        pytest.param(FIRST, SECOND, [(103, 108), (105, 110)], False, id="over within the slack"),
        pytest.param(
            FIRST, (104.0, 108.0), [(103, 108), (105, 110), (109, 114)], True, id="two live leases"
        ),
        pytest.param(
            FIRST, (104.0, 108.0), [(98, 103), (105, 103)], False, id="the first one's ran out"
        ),
        pytest.param(
            FIRST,
            (104.0, 108.0),
            [(103, 108), (105, 104), (109, 114)],
            False,
            id="it ran out between",
        ),
        pytest.param(
            FIRST, (110.5, 112.0), [(103, 108), (113, 118)], False, id="one after the other"
        ),
    ],
)
def test_one_request_in_two_workers(
    first: Execution,
    second: Execution | tuple[float, float],
    samples: list[tuple[float, float]],
    wrong: bool,
) -> None:
    if isinstance(second, tuple):
        second = Execution("t/1/1", "infer-spot-2", 22, *second, "200")
    leases = [LeaseSample("lease", 11, at, ends) for at, ends in samples]
    if not wrong:
        oracle.check_single_lease([second, first], leases)
        return
    with pytest.raises(AssertionError, match="side by side"):
        oracle.check_single_lease([second, first], leases)


def test_an_event_delivered_in_a_hot_loop() -> None:
    calm = [(float(at), 20 * at) for at in range(40)]
    oracle.check_rate(calm, 100, "deliveries")
    hot = [*calm, *((40.0 + at, 800 + 470 * at) for at in range(15))]
    with pytest.raises(AssertionError, match="deliveries a second"):
        oracle.check_rate(hot, 100, "deliveries")


def test_something_of_another_tenant() -> None:
    oracle.check_hidden({"/batches/1": 404})
    oracle.check_disjoint({"1"}, {"2"})
    with pytest.raises(AssertionError, match="another tenant is answered"):
        oracle.check_hidden({"/batches/1": 404, "/files/1": 200})
    with pytest.raises(AssertionError, match="another's"):
        oracle.check_disjoint({"1", "2"}, {"2"})


def test_a_second_charged_twice() -> None:
    leases = [LeaseSample("a", 1, 100.0, 105.0), LeaseSample("a", 1, 500.0, 505.0)]
    oracle.check_replica_time(400.0, leases)
    with pytest.raises(AssertionError, match="charged"):
        oracle.check_replica_time(700.0, leases)
