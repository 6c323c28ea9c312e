"""Observations of many processes, in one row per component."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.status.last_seen import Component, LastSeenStore, Observation

if TYPE_CHECKING:
    from tests.conftest import Database


def _write(
    database: Database,
    succeeded: float | None = None,
    failed: float | None = None,
    problem: str = "",
    role: str = "api",
) -> Any:
    """Write one observation; return the row with ages in tens of seconds."""
    observation = Observation(Component.FUNCTION, "read", succeeded, failed, problem)
    LastSeenStore(database.engine(role)).write([observation])
    with database.engine("operator").connect() as connection:
        return connection.execute(
            text(
                "SELECT floor(extract(epoch FROM now() - succeeded_at) / 10) AS succeeded, "
                "floor(extract(epoch FROM now() - failed_at) / 10) AS failed, problem, xmin "
                "FROM last_seen WHERE component = 'function' AND name = 'read'"
            )
        ).one()


@pytest.mark.parametrize("role", ["api", "worker", "operator"])
def test_every_role_writes_observations(database: Database, role: str) -> None:
    row = _write(database, succeeded=60.0, role=role)
    assert (row.succeeded, row.failed, row.problem) == (6, None, "")


def test_newer_time_stays(database: Database) -> None:
    _write(database, succeeded=10.0, failed=20.0, problem="HTTP 503")
    row = _write(database, succeeded=90.0, failed=80.0, problem="HTTP 500")
    assert (row.succeeded, row.failed, row.problem) == (1, 2, "HTTP 503")
    row = _write(database, failed=1.0, problem="HTTP 502")
    assert (row.succeeded, row.failed, row.problem) == (1, 0, "HTTP 502")


def test_barely_newer_time_is_not_written(database: Database) -> None:
    first = _write(database, succeeded=10.0)
    assert _write(database, succeeded=9.9).xmin == first.xmin
    assert _write(database, succeeded=0.0).xmin != first.xmin


def test_api_role_reads_component_names(database: Database) -> None:
    _write(database, succeeded=0.0)
    with database.engine("api").connect() as connection:
        rows = connection.execute(text("SELECT component, name FROM last_seen")).all()
    assert rows == [("function", "read")]
