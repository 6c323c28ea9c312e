"""Portal sessions that were signed out before their time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, Engine

_ADD = text("""
INSERT INTO signed_out (session, until)
SELECT key, to_timestamp(cast(value AS double precision))
FROM json_each_text(cast(:sessions AS json))
ON CONFLICT DO NOTHING
""")
_READ = text("SELECT session, extract(epoch FROM until) FROM signed_out WHERE until > now()")
_TRIM = text("DELETE FROM signed_out WHERE until < now()")


class PostgresSignedOut:
    """The sessions that stay signed out, whichever process serves the portal."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, sessions: Mapping[str, float]) -> None:
        """Record sessions, with the Unix time at which each would have ended; repeats do no harm."""
        encoded = msgspec.json.encode(sessions).decode()
        with begin(self._engine) as connection:
            connection.execute(_ADD, {"sessions": encoded})

    def read(self) -> dict[str, float]:
        """Return the sessions that would not have ended yet."""
        with begin(self._engine) as connection:
            return {session: float(until) for session, until in connection.execute(_READ)}


def trim(connection: Connection) -> int:
    """Drop the sessions that have ended anyway; return how many."""
    return connection.execute(_TRIM).rowcount
