"""A real PostgreSQL for the whole run and a fresh, migrated database for each test."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from sqlalchemy import text

from lowtide.database.connections import connect
from lowtide.database.migrate import migrate
from lowtide.local.database import EmbeddedPostgres, engine
from lowtide.local.files import LOGIN_ROLES, OWNER
from lowtide.tenants.store import ensure_default_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.worlds import World

PASSWORD = "test"
PEPPER = "test pepper"
API_KEY = "lt_test"
_TEMPLATE = "template_lowtide"
_names = count()
# Workers of pytest-xdist inherit the terminal's size here, and rich reads it on import.
for _size in ("COLUMNS", "LINES"):
    os.environ.pop(_size, None)
# The duration of an example depends on the machine; pytest-timeout limits whole tests.
settings.register_profile("lowtide", deadline=None)
settings.load_profile("lowtide")


@dataclass(frozen=True)
class Database:
    """A database with the tenant `default` and its key `lt_test`."""

    server: EmbeddedPostgres
    name: str
    engines: dict[str, Engine]

    def url(self, role: str) -> str:
        """Return its URL as `api`, `worker`, `operator`, `autoscaler` or `owner`."""
        return self.server.url(f"lowtide_{role}", PASSWORD, self.name)

    def engine(self, role: str) -> Engine:
        """Return a role's engine, which is disposed after the test."""
        if role not in self.engines:
            self.engines[role] = connect(self.url(role), pool_size=16)
        return self.engines[role]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The server, without durability."""
    server = EmbeddedPostgres(
        tmp_path_factory.mktemp("postgres"),
        settings={"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"},
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of the migrated template database."""
    with engine(postgres.superuser_url).connect() as connection:
        connection.execute(text(f"CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD '{PASSWORD}'"))
        connection.execute(text(f"CREATE DATABASE {_TEMPLATE} OWNER {OWNER}"))
    url = postgres.url(OWNER, PASSWORD, _TEMPLATE)
    migrate(url, dict.fromkeys(LOGIN_ROLES, PASSWORD))
    ensure_default_tenant(url, PEPPER, API_KEY)
    return _TEMPLATE


@pytest.fixture(scope="session")
def database_name() -> str:
    """The name of the shared database; a package that overrides it must import the dependent
    fixtures.
    """
    return "shared"


@pytest.fixture(scope="session")
def shared_database(
    postgres: EmbeddedPostgres, template: str, database_name: str
) -> Iterator[Database]:
    """A database that many tests share."""
    with engine(postgres.superuser_url).connect() as connection:
        connection.execute(
            text(
                f"CREATE DATABASE {database_name} OWNER {OWNER} TEMPLATE {template} STRATEGY FILE_COPY"
            )
        )
    made = Database(postgres, database_name, {})
    yield made
    for engine_ in made.engines.values():
        engine_.dispose()


@pytest.fixture
def world(shared_database: Database) -> Iterator[World]:
    """The shared database after removing its contents."""
    from tests.worlds import World, emptied

    yield World(emptied(shared_database))
    for name in [name for name in shared_database.engines if " " in name]:
        shared_database.engines.pop(name).dispose()


@pytest.fixture
def database(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """A fresh database, which is dropped after the test."""
    name = f"test_{next(_names)}"
    admin = engine(postgres.superuser_url)
    with admin.connect() as connection:
        connection.execute(
            text(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template} STRATEGY FILE_COPY")
        )
    made = Database(postgres, name, {})
    try:
        yield made
    finally:
        for engine_ in made.engines.values():
            engine_.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
