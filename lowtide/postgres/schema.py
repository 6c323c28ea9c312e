"""The schema's revision: what this version needs, and whether the database has it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.domain.errors import Unavailable
from lowtide.postgres.connections import begin, sqlstate

if TYPE_CHECKING:
    from sqlalchemy import Engine

_FOUND = text("SELECT min(version_num) FROM alembic_version")
# No such table, or one that this role may not read: no migration of ours has been there, or none that
# lets every role look.
_UNREADABLE = ("42P01", "42501")


@lru_cache(maxsize=1)
def newest_revision() -> str:
    """Return the revision that this version's database has once it is migrated."""
    versions = Path(__file__).parent / "migrations" / "versions"
    return max(path.name[:4] for path in versions.glob("[0-9]*.py"))


def check_schema(engine: Engine) -> None:
    """Raise Unavailable while the database does not answer, or waits for a migration.

    A newer schema is fine: migrations only add what the release before can live with.
    """
    needed = newest_revision()
    found = _revision(engine)
    if found is None:
        raise Unavailable(
            f"The schema is not {needed} yet, which this version needs: run the migration."
        )
    if found < needed:
        raise Unavailable(
            f"The database has schema {found}, this version needs {needed}: run the migration."
        )


def _revision(engine: Engine) -> str | None:
    """Return the database's revision; None where there is none to be read."""
    try:
        with begin(engine) as connection:
            found: str | None = connection.execute(_FOUND).scalar_one()
            return found
    except DBAPIError as error:
        if sqlstate(error) in _UNREADABLE:
            return None
        raise
