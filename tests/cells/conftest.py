"""Cells for tests: each a database of its own and a folder as its bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.local.database import engine
from lowtide.local.files import OWNER
from tests.cells.hosts import Host
from tests.conftest import Database
from tests.objects.conftest import s3_endpoint, s3_environment
from tests.worlds import emptied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.local.database import EmbeddedPostgres

__all__ = ["s3_endpoint", "s3_environment"]

CELLS = (1, 2, 3)


@pytest.fixture(scope="session")
def cell_databases(postgres: EmbeddedPostgres, template: str) -> Iterator[dict[int, Database]]:
    """A database for each cell."""
    made = {number: Database(postgres, f"cell_{number}", {}) for number in CELLS}
    with engine(postgres.superuser_url).connect() as connection:
        for database in made.values():
            connection.execute(
                text(
                    f"CREATE DATABASE {database.name} OWNER {OWNER} TEMPLATE {template} STRATEGY FILE_COPY"
                )
            )
    yield made
    for database in made.values():
        for each in database.engines.values():
            each.dispose()


@pytest.fixture
def hosts(cell_databases: dict[int, Database], tmp_path: Path) -> Iterator[list[Host]]:
    """Three cells without batches."""
    made = [
        Host(number, emptied(database), (tmp_path / f"bucket-{number}").as_uri())
        for number, database in cell_databases.items()
    ]
    yield made
    for host in made:
        host.close()
