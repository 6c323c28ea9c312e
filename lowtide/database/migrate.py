"""Apply the migrations: `python -m lowtide.database.migrate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from lowtide.database.connections import connect
from lowtide.database.schema import UnknownSchema, is_known

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection


_LOCK = 0x6C6F7774  # "lowt": serializes concurrent migrations


def migrate(url: str, passwords: Mapping[str, str]) -> None:
    """Apply all migrations as the owner at `url`, and set the login roles' passwords.

    Safe to run repeatedly and concurrently. Raises UnknownSchema.
    """
    engine = connect(url, pool_size=1)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.attributes["connection"] = connection
            _require_known_revision(connection)
            command.upgrade(config, "head")
            for role, password in passwords.items():
                _set_password(connection, role, password)
    finally:
        engine.dispose()


def _require_known_revision(connection: Connection) -> None:
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is not None and not is_known(revision):
        raise UnknownSchema(
            f"The database has schema {revision}, which this version does not know: migrate with the "
            "version that created it, or recreate a database of an earlier checkout."
        )


def _set_password(connection: Connection, role: str, password: str) -> None:
    statement = connection.execute(
        text("SELECT format('ALTER ROLE %I PASSWORD %L', cast(:role AS text), cast(:pw AS text))"),
        {"role": role, "pw": password},
    ).scalar_one()
    connection.exec_driver_sql(statement.replace("%", "%%"))


def main() -> None:
    """Migrate the database at `LOWTIDE_DATABASE_URL`.

    `ROLE_PASSWORD_API`, `_WORKER`, `_OPERATOR` and `_AUTOSCALER` set the roles' passwords; without
    a variable the password stays unchanged.
    """
    passwords = {
        f"lowtide_{name}": os.environ[f"ROLE_PASSWORD_{name.upper()}"]
        for name in ("api", "worker", "operator", "autoscaler")
        if f"ROLE_PASSWORD_{name.upper()}" in os.environ
    }
    migrate(os.environ["LOWTIDE_DATABASE_URL"], passwords)


if __name__ == "__main__":
    main()
