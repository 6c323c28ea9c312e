"""The revision of the schema, and the rows of a fresh installation."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.core.errors import Unavailable
from lowtide.database.connections import begin, sqlstate

if TYPE_CHECKING:
    from sqlalchemy import Engine


_VERSIONS = Path(__file__).parent / "migrations" / "versions"
_REVISION = re.compile(r'^revision = "(\w+)"', re.MULTILINE)
_BEFORE = re.compile(r'^down_revision = "(\w+)"', re.MULTILINE)
_FOUND = text("SELECT min(version_num) FROM alembic_version")
# No such table, or one that this role may not read: no migration of ours has been there, or none that
# lets every role look.
_UNREADABLE = ("42P01", "42501")


def newest_revision() -> str:
    """Return the revision that this version's database has once it is migrated."""
    revisions = _revisions()
    (newest,) = revisions.keys() - revisions.values()
    return newest


def is_older(revision: str) -> bool:
    """Return whether this version's migrations lead further; it does not know a later version's."""
    return revision != newest_revision() and revision in _revisions()


@lru_cache(maxsize=1)
def _revisions() -> dict[str, str | None]:
    """Return the revisions that this version knows, each with the one before it.

    Their order is this chain, not that of their numbers. Alembic itself need not be installed.
    """
    scripts = [path.read_text(encoding="utf-8") for path in _VERSIONS.glob("[0-9]*.py")]
    return {
        revision[1]: before[1] if (before := _BEFORE.search(script)) else None
        for script in scripts
        if (revision := _REVISION.search(script))
    }


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
    if is_older(found):
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
