"""The schema check of the readiness probe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.errors import Unavailable
from lowtide.database import schema
from lowtide.database.connections import connect
from lowtide.database.migrate import migrate
from lowtide.database.schema import check_schema, is_older, newest_revision
from tests.conftest import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Database
    from tests.worlds import World

LATER = "9999"


@pytest.fixture
def shared(world: World) -> Iterator[Database]:
    """The package's database, whose revision is restored after the test."""
    yield world.database
    _change(world.database, "GRANT SELECT ON alembic_version TO lowtide_api, lowtide_worker")
    _change(world.database, "DELETE FROM alembic_version")
    _change(world.database, "INSERT INTO alembic_version VALUES (:it)", it=newest_revision())


def _change(database: Database, statement: str, **parameters: str) -> None:
    with database.engine("owner").begin() as connection:
        connection.execute(text(statement), parameters)


@pytest.mark.parametrize("role", ["api", "worker", "operator"])
def test_migrated_schema_is_ready_for_every_role(world: World, role: str) -> None:
    check_schema(world.database.engine(role))


def test_migrated_database_has_newest_revision(world: World) -> None:
    with world.database.engine("owner").connect() as connection:
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    assert revision == newest_revision()


def test_schema_of_later_version_is_ready(shared: Database) -> None:
    _change(shared, "UPDATE alembic_version SET version_num = :it", it=LATER)
    check_schema(shared.engine("api"))


def test_empty_database_is_not_ready(world: World) -> None:
    server = world.database.server
    empty = connect(server.url("lowtide_api", PASSWORD, "postgres"), pool_size=1)
    try:
        with pytest.raises(Unavailable, match="run the migration"):
            check_schema(empty)
    finally:
        empty.dispose()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("DELETE FROM alembic_version", id="no revision"),
        pytest.param("REVOKE SELECT ON alembic_version FROM lowtide_api", id="unreadable"),
    ],
)
def test_schema_without_readable_revision_is_not_ready(shared: Database, change: str) -> None:
    _change(shared, change)
    with pytest.raises(Unavailable, match="run the migration"):
        check_schema(shared.engine("api"))


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Replace this version's migrations with a chain of empty ones, oldest first."""

    def replace(*revisions: str) -> None:
        for before, revision in zip((None, *revisions), revisions, strict=False):
            script = f'revision = "{revision}"\ndown_revision = {json.dumps(before)}\n'
            (tmp_path / f"{revision}_any.py").write_text(script.replace("null", "None"))
        monkeypatch.setattr(schema, "_VERSIONS", tmp_path)
        schema._revisions.cache_clear()

    yield replace
    monkeypatch.undo()
    schema._revisions.cache_clear()


def test_older_schema_is_not_ready(world: World, chain: Callable[..., None]) -> None:
    current = newest_revision()
    chain(current, LATER)
    message = f"has schema {current}, this version needs {LATER}: run the migration"
    with pytest.raises(Unavailable, match=message):
        check_schema(world.database.engine("api"))


def test_schema_of_other_version_is_not_migrated(shared: Database) -> None:
    _change(shared, "UPDATE alembic_version SET version_num = :it", it=LATER)
    with pytest.raises(ValueError, match=f"schema {LATER}, which this version does not know"):
        migrate(shared.url("owner"), {})


def test_revisions_are_ordered_by_chain_not_number(
    chain: Callable[..., None],
) -> None:
    chain("0001", "0009", "0003")
    assert newest_revision() == "0003"
    assert [is_older(number) for number in ("0001", "0009", "0003", "0002")] == [
        True, True, False, False,
    ]  # fmt: skip
