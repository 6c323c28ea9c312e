"""The broker's durable queue: one row per event and Trigger, until it is delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Engine


_CREATE = (
    "CREATE SCHEMA IF NOT EXISTS local_broker",
    """
    CREATE TABLE IF NOT EXISTS local_broker.deliveries (
        id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
        event_id text NOT NULL,
        source text NOT NULL,
        trigger text NOT NULL,
        headers jsonb NOT NULL,
        body bytea NOT NULL,
        attempt integer NOT NULL DEFAULT 0,
        next_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (event_id, source, trigger)
    )
    """,
    "CREATE INDEX IF NOT EXISTS deliveries_due ON local_broker.deliveries (trigger, next_at, id)",
)

# A duplicate of a stored event is dropped; one that arrives later is delivered again, as
# at-least-once delivery allows.
_ADD = text("""
    INSERT INTO local_broker.deliveries (event_id, source, trigger, headers, body)
    SELECT :event_id, :source, trigger, cast(:headers AS jsonb), :body
    FROM unnest(cast(:triggers AS text[])) AS trigger
    ON CONFLICT DO NOTHING
""")

_DUE = text("""
    SELECT id, event_id, source, headers, body, attempt,
           greatest(0, extract(epoch FROM next_at - now()))::float8 AS wait
    FROM local_broker.deliveries
    WHERE trigger = :trigger AND id <> ALL (cast(:held AS bigint[]))
    ORDER BY next_at, id
    LIMIT :most
""")

_REMOVE = text("DELETE FROM local_broker.deliveries WHERE id = :id")

_POSTPONE = text("""
    UPDATE local_broker.deliveries
    SET attempt = attempt + 1, next_at = now() + make_interval(secs => :seconds)
    WHERE id = :id
""")

_DISCARD = text(
    "DELETE FROM local_broker.deliveries WHERE trigger <> ALL (cast(:triggers AS text[]))"
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one Trigger.

    `wait` is the seconds until the next attempt; `attempt` counts from 0.
    """

    id: int
    event_id: str
    source: str
    headers: Mapping[str, str]
    body: bytes
    attempt: int
    wait: float


class Deliveries:
    """The table `local_broker.deliveries`; every call blocks on the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self) -> None:
        """Create the schema and the table, unless they exist."""
        with self._engine.begin() as connection:
            for statement in _CREATE:
                connection.execute(text(statement))

    def add(
        self,
        event_id: str,
        source: str,
        headers: str,
        body: bytes,
        triggers: Sequence[str],
    ) -> None:
        """Store one delivery per Trigger; `headers` is a JSON object."""
        values = {"event_id": event_id, "source": source, "headers": headers, "body": body}
        with self._engine.begin() as connection:
            connection.execute(_ADD, {**values, "triggers": list(triggers)})

    def due(self, trigger: str, in_flight: Sequence[int], limit: int) -> list[Delivery]:
        """Return the next deliveries of a Trigger, soonest first, except those in `in_flight`."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                _DUE, {"trigger": trigger, "held": list(in_flight), "most": limit}
            ).all()
        return [
            Delivery(
                id=row.id,
                event_id=row.event_id,
                source=row.source,
                headers=row.headers,
                body=bytes(row.body),
                attempt=row.attempt,
                wait=row.wait,
            )
            for row in rows
        ]

    def remove(self, delivery: int) -> None:
        """Delete a delivery that was made or given up."""
        with self._engine.begin() as connection:
            connection.execute(_REMOVE, {"id": delivery})

    def postpone(self, delivery: int, seconds: float) -> None:
        """Count an attempt, and schedule the next one in `seconds`."""
        with self._engine.begin() as connection:
            connection.execute(_POSTPONE, {"id": delivery, "seconds": seconds})

    def discard_unknown(self, triggers: Sequence[str]) -> None:
        """Delete the deliveries of Triggers that no longer exist, as deleting a Trigger does."""
        with self._engine.begin() as connection:
            connection.execute(_DISCARD, {"triggers": list(triggers)})
