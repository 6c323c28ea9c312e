"""The catalog of models: those that fleets list, and those that engines serve or have served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.database.connections import acting_for, begin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.core.ids import TenantId
    from lowtide.fleets.model import Fleets


# An engine that serves any name lists none, so names used by batches are included.
_NAMES = text("""
SELECT name, min(since) AS since FROM (
  SELECT name, first_seen_at AS since FROM models
  UNION ALL SELECT model, created_at FROM batches WHERE tenant_id = :tenant AND model IS NOT NULL
) known GROUP BY name ORDER BY name
""")
_READY = text("SELECT fleet, sum(ready)::bigint AS ready FROM living_workers() GROUP BY fleet")
_FLEETS = text("SELECT name, updated_at FROM fleets")
_NOTE = text("""
INSERT INTO models (name) SELECT unnest(cast(:names AS text[])) ON CONFLICT DO NOTHING
""")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model: when it was first seen, the fleet that runs it, and how many of its workers can now."""

    name: str
    since: datetime
    fleet: str
    workers: int


class ModelCatalog:
    """Record and list models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def known(self, tenant: TenantId, fleets: Fleets) -> Sequence[KnownModel]:
        """Return the models that the fleets list, and of others that they run, those in use.

        These are served by an engine, or named by the tenant's batches.
        """
        with acting_for(self._engine, tenant) as connection:
            seen = {row.name: row.since for row in connection.execute(_NAMES, {"tenant": tenant})}
            ready = {row.fleet: row.ready for row in connection.execute(_READY)}
            declared = {row.name: row.updated_at for row in connection.execute(_FLEETS)}
        found = []
        for name in sorted(seen.keys() | set(fleets.listed_models())):
            fleet = fleets.route(name)
            since = seen.get(name) or declared.get(fleet.name if fleet else "")
            if fleet is not None and since is not None:
                found.append(KnownModel(name, since, fleet.name, ready.get(fleet.name, 0)))
        return found

    def note(self, names: Sequence[str]) -> None:
        """Add models that an engine serves."""
        with begin(self._engine) as connection:
            connection.execute(_NOTE, {"names": list(names)})
