"""The declarations of fleets in the database."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from lowtide.database.connections import begin

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from lowtide.fleets.model import Fleets


# Rows stay: requests of a fleet that is no longer declared may still wait.
_MIRROR = text("""
WITH given AS (
  SELECT name, spec FROM json_to_recordset(cast(:fleets AS json)) AS g (name text, spec jsonb)
), undeclared AS (
  UPDATE fleets SET spec = NULL, updated_at = now()
  WHERE spec IS NOT NULL AND name NOT IN (SELECT name FROM given)
)
INSERT INTO fleets AS f (name, spec) SELECT name, spec FROM given ORDER BY name
ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, updated_at = now()
WHERE f.spec IS DISTINCT FROM excluded.spec
""")


class FleetStore:
    """Mirror the declared fleets."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def mirror(self, fleets: Fleets) -> None:
        """Record the declarations; nothing is written while they stay the same."""
        rows = [{"name": fleet.name, "spec": asdict(fleet)} for fleet in fleets]
        with begin(self._engine) as connection:
            connection.execute(_MIRROR, {"fleets": msgspec.json.encode(rows).decode()})
