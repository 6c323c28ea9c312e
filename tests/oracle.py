"""Invariants of every finished batch, whatever faults it survived.

The oracle reads the bytes that a user gets, with the standard library only: no code of the product
checks the product.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    ResponseCheck = Callable[["InputLine", Any], None]

_SETTLED = {
    "completed": ("created_at", "in_progress_at", "finalizing_at", "completed_at"),
    "expired": ("created_at", "in_progress_at", "expired_at"),
    "cancelled": ("created_at", "cancelling_at", "cancelled_at"),
    "failed": ("created_at", "failed_at"),
}
"""The timestamps of each final status in their required order."""
_FINAL_TIMES = {path[-1] for path in _SETTLED.values()}
_TIMES = {name for path in _SETTLED.values() for name in path} | {"expires_at"}
_NEXT = {
    "validating": ("failed", "in_progress", "cancelling"),
    "in_progress": ("finalizing", "expired", "cancelling"),
    "finalizing": ("completed", "cancelling"),
    "cancelling": ("cancelled",),
    "failed": (),
    "completed": (),
    "expired": (),
    "cancelled": (),
}
"""OpenAI's state machine: the possible next statuses."""


@dataclass(frozen=True, slots=True)
class InputLine:
    """A request of the input file; `raw` is its line without the line break."""

    custom_id: str
    body: Any
    raw: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """A line of the output or error file; `body` is None without a response."""

    custom_id: str
    request_id: str
    status_code: int | None
    body: Any
    error: dict[str, Any] | None
    raw: bytes


def input_lines(data: bytes) -> list[InputLine]:
    """Return the requests of a valid input file, which may have a BOM, CRLF and blank lines."""
    lines = []
    for raw in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line := raw.strip(b" \t\r"):
            decoded = json.loads(line)
            lines.append(InputLine(decoded["custom_id"], decoded["body"], line))
    return lines


def outcomes(data: bytes) -> list[Outcome]:
    """Return the lines of an output or error file after asserting OpenAI's exact shape."""
    assert not data or data.endswith(b"\n"), "the last line is cut off"
    parsed = []
    for raw in data.split(b"\n")[:-1]:
        line = json.loads(raw)
        assert set(line) == {"id", "custom_id", "response", "error"}, raw
        assert line["id"].startswith("batch_req_"), raw
        response, error = line["response"], line["error"]
        assert (response is None) != (error is None), raw
        if response is None:
            assert set(error) == {"code", "message"}, raw
            assert error["code"], raw
            assert error["message"], raw
            parsed.append(Outcome(line["custom_id"], line["id"], None, None, error, raw))
        else:
            assert set(response) == {"status_code", "request_id", "body"}, raw
            status, body = response["status_code"], response["body"]
            parsed.append(Outcome(line["custom_id"], line["id"], status, body, None, raw))
    return parsed


def check(
    batch: Mapping[str, Any],
    source: bytes,
    output: bytes,
    errors: bytes = b"",
    *,
    answers: ResponseCheck,
    status: str = "completed",
) -> None:
    """Assert every invariant of a finished batch.

    `batch` is the Batch object as JSON; `answers` asserts that a body of the output file answers its
    request.
    """
    assert batch["status"] == status, batch
    requests, succeeded, failed = input_lines(source), outcomes(output), outcomes(errors)
    _check_completeness(requests, succeeded, failed)
    _check_counts(batch, len(requests), len(succeeded), len(failed))
    _check_times(batch)
    _check_usage(batch, succeeded, failed)
    assert bool(batch["output_file_id"]) == bool(succeeded), batch
    assert bool(batch["error_file_id"]) == bool(failed), batch
    by_id = {line.custom_id: line for line in requests}
    for outcome in succeeded:
        assert outcome.status_code is not None, outcome.raw
        assert 200 <= outcome.status_code < 300, outcome.raw
        answers(by_id[outcome.custom_id], outcome.body)
    for outcome in failed:
        assert outcome.status_code is None or not 200 <= outcome.status_code < 300, outcome.raw
        if outcome.status_code is not None:
            assert "error" in outcome.body, outcome.raw
    _check_outcomes(batch, failed)


def check_progress(batch: Mapping[str, Any]) -> None:
    """Assert the invariants of a batch at any time."""
    counts = batch["request_counts"]
    assert min(counts.values()) >= 0, counts
    assert counts["completed"] + counts["failed"] <= counts["total"], counts
    reported = batch["x_lowtide"]["outcomes"]
    assert reported["dead_lettered"] <= reported["failed"], reported
    assert sum(reported.values()) - reported["dead_lettered"] == counts["total"], batch
    usage = batch["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], usage
    assert (batch["in_progress_at"] is None) <= (counts["total"] == 0), batch
    reached = [name for name in _FINAL_TIMES if batch[name] is not None]
    assert len(reached) == (batch["status"] in _SETTLED), batch


def check_history(states: Sequence[Mapping[str, Any]]) -> None:
    """Assert that successive states of a batch only move forward."""
    for batch in states:
        check_progress(batch)
    for before, after in pairwise(states):
        assert after["status"] in _reachable(before["status"]), (before, after)
        for name in ("total", "completed", "failed"):
            assert after["request_counts"][name] >= before["request_counts"][name], (before, after)
        moved = [name for name in _TIMES if before[name] not in (None, after[name])]
        assert not moved, f"timestamps moved: {moved}"


def _reachable(status: str) -> set[str]:
    statuses = {status}
    for following in _NEXT[status]:
        statuses |= _reachable(following)
    return statuses


def _check_completeness(
    requests: list[InputLine], succeeded: list[Outcome], failed: list[Outcome]
) -> None:
    expected = [line.custom_id for line in requests]
    counted = Counter(outcome.custom_id for outcome in [*succeeded, *failed])
    lost = [custom_id for custom_id in expected if custom_id not in counted]
    assert not lost, f"{len(lost)} requests lost, the first: {lost[:5]}"
    duplicates = [custom_id for custom_id, times in counted.items() if times > 1]
    assert not duplicates, f"{len(duplicates)} requests more than once, the first: {duplicates[:5]}"
    assert len(counted) == len(expected), f"never sent: {sorted(set(counted) - set(expected))[:5]}"
    ids = {outcome.request_id for outcome in [*succeeded, *failed]}
    assert len(ids) == len(expected), "request ids are not unique"
    position = {custom_id: number for number, custom_id in enumerate(expected)}
    for name, lines in (("output", succeeded), ("error", failed)):
        positions = [position[outcome.custom_id] for outcome in lines]
        assert positions == sorted(positions), f"the {name} file is not in input order"


def _check_counts(batch: Mapping[str, Any], total: int, completed: int, failed: int) -> None:
    counted = {"total": total, "completed": completed, "failed": failed}
    assert batch["request_counts"] == counted, f"{batch['request_counts']}, but {counted}"


def _check_outcomes(batch: Mapping[str, Any], failed: list[Outcome]) -> None:
    codes = Counter(outcome.error["code"] for outcome in failed if outcome.error)
    reported = batch["x_lowtide"]["outcomes"]
    dropped = {"expired": codes["batch_expired"], "cancelled": codes["batch_cancelled"]}
    expected = {
        "queued": 0,
        "running": 0,
        "completed": batch["request_counts"]["completed"],
        "failed": len(failed) - sum(dropped.values()),
        **dropped,
    }
    assert {name: reported[name] for name in expected} == expected, batch


def _check_times(batch: Mapping[str, Any]) -> None:
    path = _SETTLED[batch["status"]]
    times = [batch[name] for name in path]
    assert None not in times, dict(zip(path, times, strict=True))
    assert times == sorted(times), dict(zip(path, times, strict=True))
    others = _FINAL_TIMES - {path[-1]}
    assert all(batch[name] is None for name in others), batch
    assert batch["expires_at"] > batch["created_at"], batch


def _check_usage(batch: Mapping[str, Any], succeeded: list[Outcome], failed: list[Outcome]) -> None:
    spent: Counter[str] = Counter()
    for outcome in [*succeeded, *failed]:
        used = outcome.body.get("usage") if isinstance(outcome.body, dict) else None
        for name, value in (used or {}).items():
            if isinstance(value, int):
                spent[name] += value
    usage = batch["usage"]
    # APIs name their tokens prompt and completion, or input and output.
    assert usage["input_tokens"] == spent["prompt_tokens"] + spent["input_tokens"], usage
    assert usage["output_tokens"] == spent["completion_tokens"] + spent["output_tokens"], usage
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], usage


@dataclass(frozen=True, slots=True)
class LeaseSample:
    """A worker's lease as read from the database; times in Unix seconds."""

    lease: str
    pid: int
    at: float
    ends: float


@dataclass(frozen=True, slots=True)
class Execution:
    """A request at an engine, from its arrival to its answer or the sender's disconnect."""

    marker: str
    worker: str
    pid: int
    began: float
    ended: float
    outcome: str


def check_causes(failed: Sequence[Outcome], excused: Callable[[Outcome], bool]) -> None:
    """Assert that every failed request has a cause in its input or its tenant's actions."""
    innocent = [outcome for outcome in failed if not excused(outcome)]
    shown = [(one.custom_id, one.status_code, one.error or one.body) for one in innocent[:3]]
    assert not innocent, f"{len(innocent)} innocent requests failed, the first: {shown}"


def check_single_lease(
    executions: Sequence[Execution],
    leases: Sequence[LeaseSample],
    *,
    revoked: Collection[str] = (),
    slack: float = 1.0,
) -> None:
    """Assert that no request ran in two workers while the first one's lease was valid.

    A worker that lost its lease may continue for a moment without effect. A lease was valid during an
    overlap if it was sampled before and after it and had not expired. `slack` is in seconds.
    Requests in `revoked`, by marker, are exempt: their worker keeps its lease, and learns of the
    revocation when it settles them.
    """
    by_pid: dict[int, list[LeaseSample]] = {}
    for sample in leases:
        by_pid.setdefault(sample.pid, []).append(sample)
    by_marker: dict[str, list[Execution]] = {}
    for one in sorted(executions, key=lambda each: each.began):
        if one.marker in revoked:
            continue
        by_marker.setdefault(one.marker, []).append(one)
    for runs in by_marker.values():
        for number, first in enumerate(runs):
            for second in runs[number + 1 :]:
                end = min(first.ended, second.ended)
                if first.pid == second.pid or end - second.began <= slack:
                    continue
                samples = by_pid.get(first.pid, [])
                before = {s.lease for s in samples if s.at <= second.began and s.ends > s.at}
                after = {s.lease for s in samples if s.at >= end and s.ends > s.at}
                expired = {
                    s.lease for s in samples if second.began <= s.at <= end and s.ends <= s.at
                }
                valid = (before & after) - expired
                assert not valid, f"{first} and {second} ran side by side, under {valid}"


def check_rate(
    counted: Sequence[tuple[float, int]], max_rate: float, unit: str, *, window: float = 10.0
) -> None:
    """Assert that a running count, as (seconds, count), grew by at most `max_rate` per second.

    The rate is measured over at least `window` seconds.
    """
    start = 0
    for at, count in counted:
        while start + 1 < len(counted) and at - counted[start + 1][0] >= window:
            start += 1
        began, before = counted[start]
        if at - began >= window:
            rate = (count - before) / (at - began)
            assert rate <= max_rate, f"{rate:.0f} {unit} per second for {at - began:.0f} s"


def check_hidden(statuses: Mapping[str, int]) -> None:
    """Assert that every request of another tenant was answered with 404."""
    visible = {path: status for path, status in statuses.items() if status != 404}
    assert not visible, f"another tenant is answered {visible}"


def check_disjoint(listed: set[str], foreign: set[str]) -> None:
    """Assert that a tenant's list contains no item of others."""
    assert not listed & foreign, f"listed, and another's: {sorted(listed & foreign)[:3]}"


def check_replica_time(seconds: float, leases: Sequence[LeaseSample]) -> None:
    """Assert that no second of a worker was charged twice; `seconds` is the total charge of all batches."""
    spans: dict[str, tuple[float, float]] = {}
    for sample in leases:
        first, last = spans.get(sample.lease, (sample.at, sample.at))
        spans[sample.lease] = (min(first, sample.at), max(last, sample.ends))
    lived = sum(last - first for first, last in spans.values())
    # Leases start up to a heartbeat before their first sample, and short ones have none.
    assert seconds <= 1.25 * lived + 60, f"{seconds:.0f} s charged, {lived:.0f} s lived"
