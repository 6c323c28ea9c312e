"""The catalog of models that engines serve or have served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.database.connections import acting_for, begin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.core.ids import TenantId


# An engine that serves any name lists none, so names used by batches are included.
_NAMES = text("""
SELECT name, min(since) AS since FROM (
  SELECT name, first_seen_at AS since FROM models
  UNION ALL SELECT model, created_at FROM batches WHERE tenant_id = :tenant AND model IS NOT NULL
) known GROUP BY name ORDER BY name
""")
_NOTE = text("""
INSERT INTO models (name) SELECT unnest(cast(:names AS text[])) ON CONFLICT DO NOTHING
""")


class ModelCatalog:
    """Record and list models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def names(self, tenant: TenantId) -> Sequence[tuple[str, datetime]]:
        """Return the models served or named by the tenant's batches, with the time first seen."""
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(_NAMES, {"tenant": tenant})
            return [(row.name, row.since) for row in rows]

    def note(self, names: Sequence[str]) -> None:
        """Add models that an engine serves."""
        with begin(self._engine) as connection:
            connection.execute(_NOTE, {"names": list(names)})
