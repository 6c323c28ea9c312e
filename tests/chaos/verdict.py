"""What must hold at the end of a chaos run, once all faults are over."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests import oracle
from tests.chaos.exchange import check_answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.observer import Findings, Observer
    from tests.chaos.workload import Batch, Workload
    from tests.e2e.stacks import LocalStack
    from tests.oracle import Outcome

EVENTS_A_SECOND = 100.0
"""Most writes of the broker over ten seconds: a hot loop makes hundreds."""
QUIET = 100.0
"""Most transactions a second once nothing is left to do."""
_MAY_END = {
    "plain": {"completed"},
    "poison": {"completed"},
    "victim": {"completed", "failed"},
    "cancel": {"completed", "cancelled"},
    "expire": {"completed", "expired"},
    "bad": {"failed"},
}
_ON_PURPOSE = {"cancelled": "batch_cancelled", "expired": "batch_expired"}


@dataclass
class Verdict:
    """The figures of a run; `failed` counts requests by cause, `innocent` those without one."""

    batches: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    innocent: int = 0
    executions: int = 0
    settle_seconds: float = 0.0


def wait_until_over(workload: Workload, findings: Findings, within: float) -> float:
    """Wait until each batch has ended by itself; return the seconds. The observer does the reading."""
    began = time.monotonic()
    while live := workload.live():
        if time.monotonic() - began > within:
            for batch in live:
                said = {key: batch.last[key] for key in ("status", "request_counts")}
                findings.report(
                    "liveness",
                    f"{batch.id} ({batch.purpose}) has not ended in {within:g} s: {said}",
                )
            break
        time.sleep(0.2)
    return time.monotonic() - began


def judge(
    workload: Workload, stack: LocalStack, observer: Observer, findings: Findings, log: Path
) -> Verdict:
    """Check every invariant of every batch, of the leases, the events and what the database holds."""
    verdict = Verdict()
    batches = [batch for batch in workload.all() if batch.is_over]
    with ThreadPoolExecutor(4) as threads:
        for about in threads.map(lambda batch: _judge_batch(batch, findings), batches):
            verdict.batches += about.batches
            verdict.requests += about.requests
            verdict.failed += about.failed
            verdict.innocent += about.innocent
    executions = read_executions(log)
    verdict.executions = len(executions)
    findings.hold("leases", lambda: oracle.check_single_lease(executions, observer.leases))
    findings.hold(
        "events",
        lambda: oracle.check_rate(observer.event_writes, EVENTS_A_SECOND, "writes of events"),
    )
    _judge_database(stack, observer, findings)
    return verdict


def read_executions(log: Path) -> list[oracle.Execution]:
    """Return what the engine recorded."""
    lines = log.read_text().splitlines() if log.exists() else []
    found = [oracle.Execution(*json.loads(line)) for line in lines]
    return [one for one in found if "/" in one.marker]  # others are workers' own probes


def excuse(batch: Batch, outcome: Outcome) -> str:
    """Return the cause that a failed request's own input, or its tenant, gave; empty for none."""
    code = (outcome.error or {}).get("code")
    if code and code == _ON_PURPOSE.get(batch.last["status"]):
        return str(code)
    if batch.purpose == "victim" and str(code).startswith("input_"):
        return str(code)
    status = {one.custom_id: one.status for one in batch.requests}[outcome.custom_id]
    return f"poison {status}" if status != 200 else ""


def _judge_batch(batch: Batch, findings: Findings) -> Verdict:
    verdict = Verdict()
    ended = batch.last
    about = f"{batch.id} ({batch.purpose})"
    verdict.batches[f"{batch.purpose} {ended['status']}"] += 1
    if ended["status"] not in _MAY_END[batch.purpose]:
        findings.report("status", f"{about} is {ended['status']}: {ended['errors']}")
    if ended["status"] == "failed":
        findings.hold("failed batch", lambda: _check_failed(batch), about)
        return verdict
    if ended["status"] in _ON_PURPOSE and ended["in_progress_at"] is None:
        findings.hold("unsplit batch", lambda: _check_unsplit(batch), about)
        return verdict
    api = batch.tenant.api
    try:
        output, errors = (api.content(ended[f"{role}_file_id"]) for role in ("output", "error"))
    except Exception as error:  # noqa: BLE001
        findings.report("content", f"{about}: {error!r}")
        return verdict
    findings.hold(
        "batch",
        lambda: oracle.check(
            ended,
            batch.source,
            output,
            errors,
            answers=check_answer,
            status=ended["status"],
        ),
        about,
    )
    failed = oracle.outcomes(errors)
    verdict.requests["completed"] += output.count(b"\n")
    verdict.requests["failed"] += len(failed)
    verdict.failed += Counter(excuse(batch, one) or "innocent" for one in failed)
    verdict.innocent = verdict.failed.pop("innocent", 0)
    findings.hold(
        "innocent", lambda: oracle.check_causes(failed, lambda one: bool(excuse(batch, one))), about
    )
    return verdict


def _check_failed(batch: Batch) -> None:
    ended = batch.last
    assert ended["errors"]["data"], ended
    assert ended["output_file_id"] is None, ended
    assert ended["error_file_id"] is None, ended
    assert ended["failed_at"] is not None, ended


def _check_unsplit(batch: Batch) -> None:
    """Assert that a batch that ended before its file was split has no requests, nor files."""
    ended = batch.last
    assert set(ended["request_counts"].values()) == {0}, ended
    assert ended["output_file_id"] is ended["error_file_id"] is None, ended


def _judge_database(stack: LocalStack, observer: Observer, findings: Findings) -> None:
    for name, statement in _NOTHING_LEFT.items():
        findings.hold("database", lambda: _is_empty(stack, name, statement))  # noqa: B023
    charged = stack.query("SELECT coalesce(sum(replica_seconds), 0)::float8 FROM tallies")[0][0]
    findings.hold("cost", lambda: oracle.check_replica_time(charged, observer.leases))
    before, began = _transactions(stack), time.monotonic()
    time.sleep(5)
    rate = (_transactions(stack) - before) / (time.monotonic() - began)
    if rate > QUIET:
        findings.report("quiet", f"{rate:.0f} transactions a second with nothing left to do")
    # What a killed process left is started again, and everybody has room for it.
    deadline = time.monotonic() + 60
    while bad := [one.name for one in stack.programs().values() if one.state != "ready"]:
        if time.monotonic() > deadline:
            findings.report("processes", f"not ready after all faults: {bad}")
            break
        time.sleep(0.2)


_NOTHING_LEFT = {
    "claims": "SELECT count(*) FROM claims",
    "queue": "SELECT count(*) FROM queue",
    "outbox": "SELECT count(*) FROM outbox",
    "open batches": """SELECT count(*) FROM batches
        WHERE status NOT IN ('completed', 'failed', 'expired', 'cancelled')""",
    "batches with a request without its result": """SELECT count(*) FROM batches b
        WHERE status = 'completed' AND total <> (SELECT count(*) FROM results WHERE batch_id = b.id)""",
    "batches whose tallies are not their results": """SELECT count(*) FROM batches b
        CROSS JOIN LATERAL (SELECT coalesce(sum(completed), 0) AS completed,
          coalesce(sum(failed), 0) AS failed, coalesce(sum(input_tokens + output_tokens), 0) AS tokens
          FROM tallies WHERE batch_id = b.id) t
        CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE succeeded) AS completed,
          count(*) FILTER (WHERE NOT succeeded) AS failed,
          coalesce(sum(input_tokens + output_tokens), 0) AS tokens
          FROM results WHERE batch_id = b.id) r
        WHERE (t.completed, t.failed, t.tokens) IS DISTINCT FROM (r.completed, r.failed, r.tokens)""",
}


def _is_empty(stack: LocalStack, name: str, statement: str) -> None:
    deadline = time.monotonic() + 30
    while (rows := stack.attempt(statement)) == () or rows[0][0]:
        assert time.monotonic() < deadline, f"{name}: {rows}"
        time.sleep(0.3)


def _transactions(stack: LocalStack) -> int:
    return int(stack.query("SELECT sum(xact_commit) FROM pg_stat_database")[0][0])
