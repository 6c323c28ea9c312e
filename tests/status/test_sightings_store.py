"""Sightings of many processes, in one row a part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.status.last_seen import Component, LastSeenStore, Observation

if TYPE_CHECKING:
    from tests.conftest import Database


def _see(
    database: Database,
    succeeded: float | None = None,
    failed: float | None = None,
    problem: str = "",
    role: str = "api",
) -> Any:
    """Write one glimpse; return the row as ages, in tens of seconds."""
    glimpse = Observation(Component.FUNCTION, "read", succeeded, failed, problem)
    LastSeenStore(database.engine(role)).write([glimpse])
    with database.engine("operator").connect() as connection:
        return connection.execute(
            text(
                "SELECT floor(extract(epoch FROM now() - succeeded_at) / 10) AS succeeded, "
                "floor(extract(epoch FROM now() - failed_at) / 10) AS failed, problem, xmin "
                "FROM sightings WHERE sight = 'function' AND name = 'read'"
            )
        ).one()


@pytest.mark.parametrize("role", ["api", "worker", "operator"])
def test_every_role_that_works_tells(database: Database, role: str) -> None:
    row = _see(database, succeeded=60.0, role=role)
    assert (row.succeeded, row.failed, row.problem) == (6, None, "")


def test_what_is_newer_stays(database: Database) -> None:
    _see(database, succeeded=10.0, failed=20.0, problem="HTTP 503")
    row = _see(database, succeeded=90.0, failed=80.0, problem="HTTP 500")
    assert (row.succeeded, row.failed, row.problem) == (1, 2, "HTTP 503")
    row = _see(database, failed=1.0, problem="HTTP 502")
    assert (row.succeeded, row.failed, row.problem) == (1, 0, "HTTP 502")


def test_what_another_replica_just_told_is_not_written_again(database: Database) -> None:
    first = _see(database, succeeded=10.0)
    assert _see(database, succeeded=9.9).xmin == first.xmin
    assert _see(database, succeeded=0.0).xmin != first.xmin


def test_a_tenant_role_sees_no_more_than_parts(database: Database) -> None:
    _see(database, succeeded=0.0)
    with database.engine("api").connect() as connection:
        rows = connection.execute(text("SELECT sight, name FROM sightings")).all()
    assert rows == [("function", "read")]
