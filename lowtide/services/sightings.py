"""Telling everybody when a part was last seen at work, without costing the work anything."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lowtide.domain.errors import LowtideError
from lowtide.domain.outcomes import TRANSIENT_STATUSES
from lowtide.domain.sightings import Glimpse, Sight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.domain.events import Event
    from lowtide.domain.pools import Pool
    from lowtide.ports import EventSink, SightingBook

EVERY_SECONDS: Final = 5.0
INTERRUPTED: Final = "interrupted"
# What another try may cure, and a key that the engine refuses: neither is the line's fault.
_TROUBLE: Final = TRANSIENT_STATUSES | {401, 403}

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seen:
    succeeded: float | None = None
    failed: float | None = None
    problem: str = ""

    def since(self, before: _Seen | None) -> _Seen:
        """Return this and what was seen before; a failure keeps its own problem."""
        if before is None:
            return self
        last = self if self.failed is not None else before
        succeeded = before.succeeded if self.succeeded is None else self.succeeded
        return _Seen(succeeded, last.failed, last.problem)


class Sightings:
    """Keeps what this process saw in memory, and writes it at most every `every` seconds.

    `note` takes no lock of the database and never waits for it: a thread of its own writes. What
    a failing database does not take is written later, and what nobody sees costs nothing.
    """

    def __init__(
        self,
        book: SightingBook,
        *,
        timer: Callable[[], float],
        every: float = EVERY_SECONDS,
    ) -> None:
        self._book = book
        self._timer = timer
        self._every = every
        self._lock = threading.Lock()
        self._seen: dict[tuple[Sight, str], _Seen] = {}
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, sight: Sight, name: str, problem: str | None = None) -> None:
        """Note that a part did its work now, or that it failed with a problem."""
        now = self._timer()
        with self._lock:
            seen = self._seen.setdefault((sight, name), _Seen())
            if problem is None:
                seen.succeeded = now
            else:
                seen.failed, seen.problem = now, problem
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="sightings")
                self._thread.start()
        if not self._some.is_set():
            self._some.set()

    def close(self, timeout: float) -> None:
        """Write what is left, for at most `timeout` seconds."""
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
            self._book.write(self._glimpses(seen))
        except LowtideError as error:
            _log.info("sightings.unwritten", extra={"reason": error.for_log})
            with self._lock:
                newer = {key: each.since(seen.get(key)) for key, each in self._seen.items()}
                self._seen = seen | newer
            self._some.set()
        except Exception:  # noqa: BLE001 - the thread must outlive it, and the work must not notice
            _log.exception("sightings.failed")

    def _glimpses(self, seen: dict[tuple[Sight, str], _Seen]) -> Sequence[Glimpse]:
        now = self._timer()

        def age(moment: float | None) -> float | None:
            return None if moment is None else max(now - moment, 0.0)

        # In one order, so that two processes never wait for each other.
        return [
            Glimpse(sight, name, age(each.succeeded), age(each.failed), each.problem)
            for (sight, name), each in sorted(seen.items())
        ]


class SightedSink:
    """Port EventSink: another one, whose answers are noted by the event's type."""

    def __init__(self, sink: EventSink, sightings: Sightings, *, refusal: str) -> None:
        self._sink = sink
        self._sightings = sightings
        self._refusal = refusal

    def publish(self, event: Event) -> bool:
        """Send one event; return whether the sink accepted it. Never raises."""
        accepted = self._sink.publish(event)
        self._sightings.note(Sight.SENT, event.type.value, None if accepted else self._refusal)
        return accepted


class SightedEngine:
    """Notes what the engine of a pool says of lines."""

    def __init__(self, sightings: Sightings, pool: Pool) -> None:
        self._sightings = sightings
        self._pool = pool

    def answered(self, answer: str) -> None:
        """Note an answer: an HTTP status, a code of why there is none, or `interrupted`."""
        if answer == INTERRUPTED:
            return
        if not answer.isdigit():
            problem: str | None = answer.replace("_", " ")
        else:
            problem = f"HTTP {answer}" if int(answer) in _TROUBLE else None
        self._sightings.note(Sight.ENGINE, self._pool.value, problem)
