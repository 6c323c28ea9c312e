"""The batch state machine, and the SQL guards that match its transitions."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from lowtide.batches import store as batches_store
from lowtide.batches.model import (
    BATCH_TRANSITIONS,
    CANCELLABLE_STATUSES,
    FINAL_STATUSES,
    SLA_STATES,
    BatchStatus,
)
from lowtide.pipeline import final_store, split_store
from lowtide.queue import draining
from lowtide.scheduler import sweep

V, F, P, Z = (
    BatchStatus.VALIDATING,
    BatchStatus.FAILED,
    BatchStatus.IN_PROGRESS,
    BatchStatus.FINALIZING,
)
C, E, X, D = (
    BatchStatus.COMPLETED,
    BatchStatus.EXPIRED,
    BatchStatus.CANCELLING,
    BatchStatus.CANCELLED,
)


@pytest.mark.parametrize(
    "path",
    [[V, F], [V, P, Z, C], [V, P, E], [V, X, D], [V, P, X, D], [V, P, Z, X, D]],
    ids=lambda path: "-".join(status.value for status in path),
)
def test_documented_paths_are_allowed(path: list[BatchStatus]) -> None:
    assert all(after in BATCH_TRANSITIONS[before] for before, after in pairwise(path))
    assert path[-1] in FINAL_STATUSES


def test_every_status_is_classified() -> None:
    assert set(BATCH_TRANSITIONS) == set(SLA_STATES) == set(BatchStatus)
    assert {F, C, E, D} == FINAL_STATUSES
    assert {V, P, Z} == CANCELLABLE_STATUSES


_QUOTED = re.compile(r"'([a-z_]+)'")
_SET = re.compile(r"SET\s+status = '([a-z_]+)'", re.DOTALL)
_GUARD = re.compile(r"\bAND status (?:= ('[a-z_]+')|IN \(([^)]*)\))")


@pytest.mark.parametrize(
    ("sql", "before", "after"),
    [
        pytest.param(split_store._START, {V}, P, id="split"),
        pytest.param(split_store._REJECT, {V}, F, id="reject"),
        pytest.param(batches_store._CANCEL, CANCELLABLE_STATUSES, X, id="cancel"),
        pytest.param(final_store._CLOSE[C], {Z}, C, id="complete"),
        pytest.param(final_store._CLOSE[D], {X}, D, id="end a cancelled batch"),
        pytest.param(final_store._CLOSE[E], {P}, E, id="end an expired batch"),
    ],
)
def test_statements_guard_on_from_states(
    sql: object, before: set[BatchStatus], after: BatchStatus
) -> None:
    statement = str(sql)
    set_to = _SET.search(statement)
    guard = _GUARD.search(statement)
    assert set_to is not None
    assert guard is not None
    assert BatchStatus(set_to[1]) is after
    assert {BatchStatus(name) for name in _QUOTED.findall(guard[0])} == before
    assert all(after in BATCH_TRANSITIONS[status] for status in before)


def test_draining_finalizes_only_batches_in_progress() -> None:
    statement = str(draining._DRAIN)
    assert "WHEN status = 'in_progress' AND NOT expiring THEN 'finalizing' ELSE status" in statement
    assert Z in BATCH_TRANSITIONS[P]


def test_no_other_statement_sets_a_status() -> None:
    for module in (batches_store, draining, final_store, split_store, sweep):
        for name, value in vars(module).items():
            statements = value.values() if isinstance(value, dict) else [value]
            for statement in map(str, statements):
                if "UPDATE batches" in statement and re.search(
                    r"SET[^;]*\bstatus =", statement.split("WHERE")[0]
                ):
                    assert name in {"_START", "_REJECT", "_CANCEL", "_CLOSE", "_DRAIN"}
