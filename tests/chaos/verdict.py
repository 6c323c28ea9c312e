"""The invariants that must hold at the end of a chaos run."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests import oracle
from tests.chaos import lifecycle
from tests.chaos.engine import FOREIGN
from tests.chaos.exchange import check_answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.observer import Findings, Observer
    from tests.chaos.system import System
    from tests.chaos.workload import Batch, Workload
    from tests.e2e.stacks import LocalStack
    from tests.oracle import Outcome

MAX_EVENTS_PER_SECOND = 100.0
"""Maximum writes of the broker over ten seconds: a hot loop makes hundreds."""
MAX_IDLE_RATE = 100.0
"""Maximum transactions per second of an idle system."""
_FINAL_STATUSES = {
    "plain": {"completed"},
    "spared": {"completed"},
    "deleted": {"completed"},
    "outlived": {"completed"},
    "poison": {"completed"},
    "victim": {"completed", "failed"},
    "cancel": {"completed", "cancelled"},
    "expire": {"completed", "expired"},
    "bad": {"failed"},
}
_EXPECTED_CODES = {"cancelled": "batch_cancelled", "expired": "batch_expired"}


@dataclass
class Verdict:
    """The counts of a run; `failed` counts requests by cause, `innocent` those without one."""

    batches: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    innocent: int = 0
    executions: int = 0
    settle_seconds: float = 0.0


def wait_until_over(workload: Workload, findings: Findings, within: float) -> float:
    """Wait until each batch has ended, as the observer reads it; return the seconds."""
    began = time.monotonic()
    while live := workload.live():
        if time.monotonic() - began > within:
            for batch in live:
                state = {key: batch.last[key] for key in ("status", "request_counts")}
                findings.report(
                    "liveness",
                    f"{batch.id} ({batch.purpose}) has not ended in {within:g} s: {state}",
                )
            break
        time.sleep(0.2)
    return time.monotonic() - began


def judge(workload: Workload, system: System, observer: Observer, findings: Findings) -> Verdict:
    """Check every invariant of batches, leases, events and the database."""
    verdict = Verdict()
    batches = [batch for batch in workload.all() if batch.is_over]
    with ThreadPoolExecutor(4) as threads:
        for one in threads.map(lambda batch: _judge_batch(batch, findings), batches):
            verdict.batches += one.batches
            verdict.requests += one.requests
            verdict.failed += one.failed
            verdict.innocent += one.innocent
    executions = read_executions(system.executions)
    verdict.executions = len(executions)
    foreign = [one for one in executions if one.outcome == FOREIGN]
    if foreign:
        findings.report("routing", f"{len(foreign)} at another fleet's engine, first {foreign[0]}")
    revoked = {
        batch.requests[line - 1].marker
        for batch in workload.all()
        for of, line in observer.revoked
        if of == batch.id
    }
    findings.hold(
        "leases", lambda: oracle.check_single_lease(executions, observer.leases, revoked=revoked)
    )
    findings.hold(
        "events",
        lambda: oracle.check_rate(observer.event_writes, MAX_EVENTS_PER_SECOND, "writes of events"),
    )
    _judge_database(system.stack, observer, findings)
    lifecycle.judge(system, workload, findings)
    return verdict


def read_executions(log: Path) -> list[oracle.Execution]:
    """Return the executions that the engine recorded."""
    lines = log.read_text().splitlines() if log.exists() else []
    executions = [oracle.Execution(*json.loads(line)) for line in lines]
    return [one for one in executions if "/" in one.marker]  # the others are workers' probes


def excuse(batch: Batch, outcome: Outcome) -> str:
    """Return the cause of a failed request in its own input or its tenant's actions; empty for none."""
    code = (outcome.error or {}).get("code")
    if code and code == _EXPECTED_CODES.get(batch.last["status"]):
        return str(code)
    if batch.purpose == "victim" and str(code).startswith("input_"):
        return str(code)
    status = {one.custom_id: one.status for one in batch.requests}[outcome.custom_id]
    return f"poison {status}" if status != 200 else ""


def _judge_batch(batch: Batch, findings: Findings) -> Verdict:
    verdict = Verdict()
    final = batch.last
    about = f"{batch.id} ({batch.purpose})"
    verdict.batches[f"{batch.purpose} {final['status']}"] += 1
    if final["status"] not in _FINAL_STATUSES[batch.purpose]:
        findings.report("status", f"{about} is {final['status']}: {final['errors']}")
    if final["status"] == "completed" and batch.purpose != "expire":
        findings.hold("in time", lambda: _check_in_time(batch), about)
    if final["status"] == "failed":
        findings.hold("failed batch", lambda: _check_failed(batch), about)
        return verdict
    if final["status"] in _EXPECTED_CODES and final["in_progress_at"] is None:
        findings.hold("unsplit batch", lambda: _check_unsplit(batch), about)
        return verdict
    api = batch.tenant.api
    try:
        output, errors = batch.contents or (
            api.content(final[f"{role}_file_id"]) for role in ("output", "error")
        )
    except Exception as error:  # noqa: BLE001
        findings.report("content", f"{about}: {error!r}")
        return verdict
    findings.hold(
        "batch",
        lambda: oracle.check(
            final,
            batch.source,
            output,
            errors,
            answers=check_answer,
            status=final["status"],
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


def _check_in_time(batch: Batch) -> None:
    final = batch.last
    assert final["completed_at"] <= final["expires_at"], final


def _check_failed(batch: Batch) -> None:
    final = batch.last
    assert final["errors"]["data"], final
    assert final["output_file_id"] is None, final
    assert final["error_file_id"] is None, final
    assert final["failed_at"] is not None, final


def _check_unsplit(batch: Batch) -> None:
    """Assert that a batch that ended before its split has no requests and no files."""
    final = batch.last
    assert set(final["request_counts"].values()) == {0}, final
    assert final["output_file_id"] is final["error_file_id"] is None, final


def _judge_database(stack: LocalStack, observer: Observer, findings: Findings) -> None:
    for name, statement in _NOTHING_LEFT.items():
        findings.hold("database", lambda: _is_empty(stack, name, statement))  # noqa: B023
    charged = stack.query("SELECT coalesce(sum(replica_seconds), 0)::float8 FROM tallies")[0][0]
    findings.hold("cost", lambda: oracle.check_replica_time(charged, observer.leases))
    before, began = _transactions(stack), time.monotonic()
    time.sleep(5)
    rate = (_transactions(stack) - before) / (time.monotonic() - began)
    if rate > MAX_IDLE_RATE:
        findings.report("quiet", f"{rate:.0f} transactions per second of an idle system")
    # Every killed process must be running again.
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
