"""Which schema a process waits for before it is ready."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.errors import Unavailable
from lowtide.database import schema
from lowtide.database.connections import connect
from lowtide.database.schema import check_schema, newest_revision
from tests.conftest import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Database
    from tests.worlds import World

REPLACE = "UPDATE alembic_version SET version_num = :it"
OLDER = "0010"
NEWER = "9999"
NEEDED = f"this version needs {newest_revision()}: run the migration"


@pytest.fixture
def shared(world: World) -> Iterator[Database]:
    """The package's database, whose revision is put right again after the test."""
    yield world.database
    _change(world.database, "GRANT SELECT ON alembic_version TO lowtide_api, lowtide_worker")
    _change(world.database, "DELETE FROM alembic_version")
    _change(world.database, "INSERT INTO alembic_version VALUES (:it)", it=newest_revision())


def _change(database: Database, statement: str, **parameters: str) -> None:
    with database.engine("owner").begin() as connection:
        connection.execute(text(statement), parameters)


@pytest.mark.parametrize("role", ["api", "worker", "operator"])
def test_every_role_sees_that_a_migrated_database_is_ready(world: World, role: str) -> None:
    check_schema(world.database.engine(role))


def test_a_schema_that_a_later_version_migrated_is_ready(shared: Database) -> None:
    _change(shared, REPLACE, it=NEWER)
    check_schema(shared.engine("api"))


def test_a_process_waits_for_the_first_migration(world: World) -> None:
    server = world.database.server
    empty = connect(server.url("lowtide_api", PASSWORD, "postgres"), pool_size=1)
    try:
        with pytest.raises(Unavailable, match="run the migration"):
            check_schema(empty)
    finally:
        empty.dispose()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            REPLACE,
            f"has schema {OLDER}, {NEEDED}",
            id="older",
        ),
        pytest.param("DELETE FROM alembic_version", "run the migration", id="no revision"),
        pytest.param(
            "REVOKE SELECT ON alembic_version FROM lowtide_api", "run the migration", id="0010"
        ),
    ],
)
def test_a_process_waits_for_the_migration(shared: Database, change: str, message: str) -> None:
    _change(shared, change, **({"it": OLDER} if change is REPLACE else {}))
    with pytest.raises(Unavailable, match=message):
        check_schema(shared.engine("api"))


def test_the_order_of_revisions_is_their_chain_not_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, before in (("0001", None), ("0009", "0001"), ("0003", "0009")):
        script = f'revision = "{number}"\ndown_revision = {json.dumps(before)}\n'
        (tmp_path / f"{number}_any.py").write_text(script.replace("null", "None"))
    monkeypatch.setattr(schema, "_VERSIONS", tmp_path)
    schema._revisions.cache_clear()
    try:
        assert newest_revision() == "0003"
    finally:
        monkeypatch.undo()
        schema._revisions.cache_clear()
    assert int(newest_revision()) > 10
