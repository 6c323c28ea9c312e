"""The times at which each component was last seen working."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import text

from lowtide.core.errors import LowtideError
from lowtide.database.connections import begin
from lowtide.engines.attribution import NOT_THE_REQUEST
from lowtide.engines.outcomes import TRANSIENT_STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.core.pools import FleetPool
    from lowtide.events.model import Event, EventSink


TICK = "dev.knative.sources.ping"
"""The type of a PingSource's event, a tick of the scheduler."""


class Component(StrEnum):
    """The kind of an observation.

    `function`: a function answered; `sent`: the broker accepted an event of a type; `delivered`: a
    function handled one; `engine`: an engine answered a request of a fleet's pool.
    """

    FUNCTION = "function"
    SENT = "sent"
    DELIVERED = "delivered"
    ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class LastSeen:
    """The times of a component's last success and last failure, and the problem of the failure."""

    succeeded_at: datetime | None = None
    failed_at: datetime | None = None
    problem: str = ""

    @property
    def fails(self) -> bool:
        """True if the last observation is a failure."""
        if self.failed_at is None:
            return False
        return self.succeeded_at is None or self.failed_at > self.succeeded_at

    @property
    def last_at(self) -> datetime | None:
        """The time of the last observation."""
        return max((at for at in (self.succeeded_at, self.failed_at) if at), default=None)


@dataclass(frozen=True, slots=True)
class Observation:
    """A component as one process observed it since its last write.

    `succeeded` and `failed` are seconds ago, None for no such observation.
    """

    component: Component
    name: str
    succeeded: float | None
    failed: float | None
    problem: str


# All times are of the database's clock. The replicas of a function observe the same component: an
# observation less than 3 s newer than the row does not update it.
_WRITE = text("""
INSERT INTO last_seen AS s (component, name, succeeded_at, failed_at, problem)
SELECT component, name, now() - make_interval(secs => succeeded), now() - make_interval(secs => failed),
  problem
FROM json_to_recordset(cast(:rows AS json)) AS g (
  component text, name text, succeeded double precision, failed double precision, problem text)
ON CONFLICT (component, name) DO UPDATE SET
  succeeded_at = greatest(s.succeeded_at, excluded.succeeded_at),
  failed_at = greatest(s.failed_at, excluded.failed_at),
  problem = CASE WHEN excluded.failed_at > coalesce(s.failed_at, '-infinity')
    THEN excluded.problem ELSE s.problem END
WHERE excluded.succeeded_at > coalesce(s.succeeded_at, '-infinity') + interval '3 seconds'
  OR excluded.failed_at > coalesce(s.failed_at, '-infinity') + interval '3 seconds'
""")


class LastSeenStore:
    """The table of the times at which components were last seen."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def write(self, observations: Sequence[Observation]) -> None:
        """Record observations; a newer recorded time stays."""
        rows = msgspec.json.encode([asdict(observation) for observation in observations]).decode()
        with begin(self._engine) as connection:
            connection.execute(_WRITE, {"rows": rows})


EVERY_SECONDS: Final = 5.0
INTERRUPTED: Final = "interrupted"
# Statuses that the request itself did not cause.
_TROUBLE: Final = TRANSIENT_STATUSES | NOT_THE_REQUEST

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seen:
    succeeded: float | None = None
    failed: float | None = None
    problem: str = ""

    def since(self, before: _Seen | None) -> _Seen:
        """Merge this with an earlier observation; a failure keeps its own problem."""
        if before is None:
            return self
        last = self if self.failed is not None else before
        succeeded = before.succeeded if self.succeeded is None else self.succeeded
        return _Seen(succeeded, last.failed, last.problem)


class Observations:
    """Buffer of this process's observations, written at most every `every` seconds.

    `note` never waits for the database: a background thread writes. A failed write is retried, and
    nothing is written without observations.
    """

    def __init__(
        self,
        book: LastSeenStore,
        *,
        timer: Callable[[], float],
        every: float = EVERY_SECONDS,
    ) -> None:
        self._book = book
        self._timer = timer
        self._every = every
        self._lock = threading.Lock()
        self._seen: dict[tuple[Component, str], _Seen] = {}
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, component: Component, name: str, problem: str | None = None) -> None:
        """Record that a component succeeded now, or failed with a problem."""
        now = self._timer()
        with self._lock:
            seen = self._seen.setdefault((component, name), _Seen())
            if problem is None:
                seen.succeeded = now
            else:
                seen.failed, seen.problem = now, problem
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="last-seen")
                self._thread.start()
        if not self._some.is_set():
            self._some.set()

    def close(self, timeout: float) -> None:
        """Write the remaining observations; waits at most `timeout` seconds."""
        self._closing.set()
        self._some.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._some.wait()
            self._write()
            self._closing.wait(self._every)
        self._write()

    def _write(self) -> None:
        self._some.clear()
        with self._lock:
            seen, self._seen = self._seen, {}
        if not seen:
            return
        try:
            self._book.write(self._observations(seen))
        except LowtideError as error:
            _log.info("last_seen.not_written", extra={"reason": error.for_log})
            with self._lock:
                newer = {key: each.since(seen.get(key)) for key, each in self._seen.items()}
                self._seen = seen | newer
            self._some.set()
        except Exception:  # noqa: BLE001 - the thread must outlive it, and the work must not notice
            _log.exception("last_seen.failed")

    def _observations(self, seen: dict[tuple[Component, str], _Seen]) -> Sequence[Observation]:
        now = self._timer()

        def age(moment: float | None) -> float | None:
            return None if moment is None else max(now - moment, 0.0)

        # Sorted, so that the writes of two processes cannot deadlock.
        return [
            Observation(component, name, age(each.succeeded), age(each.failed), each.problem)
            for (component, name), each in sorted(seen.items())
        ]


class ObservedSink:
    """An event sink that records the answers of another sink by event type."""

    def __init__(self, sink: EventSink, observations: Observations, *, refusal: str) -> None:
        self._sink = sink
        self._observations = observations
        self._refusal = refusal

    def publish(self, event: Event) -> bool:
        """Send one event; return True if the sink accepted it. Never raises."""
        accepted = self._sink.publish(event)
        self._observations.note(
            Component.SENT, event.type.value, None if accepted else self._refusal
        )
        return accepted


class ObservedEngine:
    """Records the answers of the engine of a fleet's pool."""

    def __init__(self, observations: Observations, place: FleetPool) -> None:
        self._observations = observations
        self._name = place.key

    def answered(self, answer: str) -> None:
        """Record an answer: an HTTP status, an error code, or `interrupted`, which is ignored."""
        if answer == INTERRUPTED:
            return
        if not answer.isdigit():
            problem: str | None = answer.replace("_", " ")
        else:
            problem = f"HTTP {answer}" if int(answer) in _TROUBLE else None
        self._observations.note(Component.ENGINE, self._name, problem)
