"""The schema revision that this version needs, and the check for it."""

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
_PREDECESSOR = re.compile(r'^down_revision = "(\w+)"', re.MULTILINE)
_CURRENT = text("SELECT min(version_num) FROM alembic_version")
# Undefined table or insufficient privilege: no migration has run.
_UNREADABLE = ("42P01", "42501")


class UnknownSchema(ValueError):
    """A newer version, or a checkout before the first release, created the database."""


def newest_revision() -> str:
    """Return the revision of a database that is migrated to this version."""
    revisions = _revisions()
    (newest,) = revisions.keys() - revisions.values()
    return newest


def is_known(revision: str) -> bool:
    """Return True if this version has the migration of `revision`."""
    return revision in _revisions()


def is_older(revision: str) -> bool:
    """Return True if this version has migrations after `revision`; False for later versions'."""
    return revision != newest_revision() and revision in _revisions()


@lru_cache(maxsize=1)
def _revisions() -> dict[str, str | None]:
    """Return the revisions of this version, each with its predecessor.

    This chain defines their order, not their numbers. Alembic need not be installed.
    """
    scripts = [path.read_text(encoding="utf-8") for path in _VERSIONS.glob("[0-9]*.py")]
    return {
        revision[1]: predecessor[1] if (predecessor := _PREDECESSOR.search(script)) else None
        for script in scripts
        if (revision := _REVISION.search(script))
    }


def check_schema(engine: Engine) -> None:
    """Raise Unavailable while the database does not respond or needs a migration.

    A newer schema is accepted: migrations stay compatible with the previous release.
    """
    required = newest_revision()
    current = _current_revision(engine)
    if current is None:
        raise Unavailable(
            f"This version needs schema {required}, which the database does not have yet: run the migration."
        )
    if is_older(current):
        raise Unavailable(
            f"The database has schema {current}, this version needs {required}: run the migration."
        )


def _current_revision(engine: Engine) -> str | None:
    """Return the database's revision; None if there is none or it is not readable."""
    try:
        with begin(engine) as connection:
            revision: str | None = connection.execute(_CURRENT).scalar_one()
            return revision
    except DBAPIError as error:
        if sqlstate(error) in _UNREADABLE:
            return None
        raise
