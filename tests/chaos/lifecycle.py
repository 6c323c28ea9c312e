"""Faults and invariants of data that ends: uploads in parts, deleted files, retention, partitions."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Final

from tests.e2e.waiting import until

if TYPE_CHECKING:
    from tests.chaos.observer import Findings
    from tests.chaos.system import System
    from tests.chaos.workload import Batch, Tenant, Workload

_PATIENCE: Final = 420.0
_FILE_ROLES: Final = ("input_file_id", "output_file_id", "error_file_id")
# All of them as a day or two later.
_LATER: Final = (
    "UPDATE erasures SET due_at = now() RETURNING 1",
    "UPDATE orphan_objects SET due_at = now() RETURNING 1",
    "UPDATE batches SET data_ended_at = now() - interval '3 days' WHERE data_ended_at IS NOT NULL RETURNING 1",
)
_UNFINISHED: Final = {
    "erasures": "SELECT count(*) FROM erasures",
    "orphans": "SELECT count(*) FROM orphan_objects",
    "bodies of closed batches": "SELECT count(*) FROM results WHERE body IS NOT NULL",
    "batches whose data was not deleted": """
        SELECT count(*) FROM batches WHERE data_ended_at IS NOT NULL AND NOT data_deleted""",
    "partitions without a batch": """
        SELECT count(*) FROM data_partitions p
        WHERE p.low IS NOT NULL AND p.high <= first_id((now() AT TIME ZONE 'UTC')::date)
          AND NOT EXISTS (SELECT FROM batches WHERE id >= p.low AND id < p.high)""",
}
_ROWS: Final = """
SELECT 'requests' AS of FROM requests WHERE batch_id = cast(:batch AS uuid) AND NOT (:kept AND custom_id = '')
UNION SELECT 'results' FROM results WHERE batch_id = cast(:batch AS uuid)
  AND NOT (:kept AND body IS NULL AND error_message IS NULL)
UNION SELECT 'dead_letters' FROM dead_letters WHERE batch_id = cast(:batch AS uuid)
  AND NOT (:kept AND error_message IS NULL)
UNION SELECT 'request_events' FROM request_events WHERE batch_id = cast(:batch AS uuid)
  AND NOT (:kept AND detail = '')
UNION SELECT 'custom_ids' FROM custom_ids WHERE batch_id = cast(:batch AS uuid)
"""
_OWNERS: Final = """
SELECT replace(cast(id AS text), '-', '') FROM files
UNION SELECT replace(cast(id AS text), '-', '') FROM batches
WHERE output_file_id IS NOT NULL OR error_file_id IS NOT NULL
"""
_ID: Final = re.compile("[0-9a-f]{32}")


def upload_in_parts(tenant: Tenant, data: bytes, pick: int) -> str:
    """Upload a file in parts that are sent out of order; return its id."""
    rng = random.Random(pick)  # noqa: S311
    cuts = sorted(rng.sample(range(1, len(data)), 4))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return tenant.api.upload_parts(pieces, rng.sample(range(len(pieces)), len(pieces)))


def delete(workload: Workload, tenant: Tenant) -> Batch:
    """Let a batch end, read its files for the verdict and delete all of them."""
    batch = _ended(workload, tenant)
    for role in _FILE_ROLES:
        tenant.api.delete(batch.last[role])
    batch.purpose = "deleted"
    return batch


def end_retention(system: System, workload: Workload, tenant: Tenant) -> Batch:
    """Let a batch end, read its files for the verdict and let its retention be over."""
    batch = _ended(workload, tenant)
    until(
        lambda: system.stack.attempt(
            """UPDATE batches SET completed_at = completed_at - interval '60 days'
               WHERE id = cast(:batch AS uuid) RETURNING 1""",
            batch=batch.id.removeprefix("batch_"),
        ),
        "the retention is over",
        within=_PATIENCE,
    )
    batch.purpose = "outlived"
    return batch


def add_past_partitions(system: System, days: int) -> str:
    """Add the partitions of a past day without a batch, which maintenance must drop."""
    return str(
        until(
            lambda: system.stack.attempt(
                "SELECT make_partitions(first_id((now() AT TIME ZONE 'UTC')::date - cast(:days AS integer))) + 1",
                days=days,
            ),
            "partitions are made",
            within=_PATIENCE,
        )[0][0]
    )


def judge(system: System, workload: Workload, findings: Findings) -> None:
    """Check that nothing is left of what was deleted or has ended, in the database or the store."""
    for statement in _LATER:
        system.stack.query(statement)
    for name, statement in _UNFINISHED.items():
        findings.hold("lifecycle", lambda: _is_empty(system, name, statement))  # noqa: B023
    for batch in workload.all():
        if batch.purpose in {"deleted", "outlived"} and batch.is_over:
            findings.hold("lifecycle", lambda: _is_gone(system, batch), batch.id)  # noqa: B023
    findings.hold("lifecycle", lambda: _every_object_is_owned(system))


def _ended(workload: Workload, tenant: Tenant) -> Batch:
    batch = workload.submit(tenant, "poison", poison=[400] * 2)
    until(lambda: batch.is_over, "the batch has ended", within=_PATIENCE)
    contents = [tenant.api.content(batch.last[role]) for role in _FILE_ROLES[1:]]
    batch.contents = (contents[0], contents[1])
    return batch


def _is_empty(system: System, name: str, statement: str) -> None:
    until(
        lambda: (rows := system.stack.attempt(statement)) and not rows[0][0],
        f"no {name} are left",
        within=120,
    )


def _is_gone(system: System, batch: Batch) -> None:
    kept = batch.purpose == "deleted"
    rows = system.stack.query(_ROWS, batch=batch.id.removeprefix("batch_"), kept=kept)
    assert not rows, f"{batch.purpose} batch has {[row[0] for row in rows]}"
    for role in _FILE_ROLES[0 if kept else 1 :]:
        if file := batch.last[role]:
            status = batch.tenant.api.status_of(f"/files/{file}/content")
            assert status == 404, f"{role} of {batch.purpose} batch: HTTP {status}"


def _every_object_is_owned(system: System) -> None:
    owners = {row[0] for row in system.stack.query(_OWNERS)}
    keys = list(system.store.keys())
    assert keys, "the store has no objects"
    leaked = [key for key in keys if _id_in(key) not in owners]
    assert not leaked, f"{len(leaked)} of {len(keys)} objects belong to nothing: {leaked[:5]}"


def _id_in(key: str) -> str:
    match = _ID.search(key)
    return match.group() if match else ""
