"""Sessions that were signed out before their time, in every copy of their cookie."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.postgres.signed_out import PostgresSignedOut

READ_EVERY: Final = 10.0


class SignedOut:
    """Answers from memory; the database carries it over a restart, and to a portal beside this one.

    Sessions of before this process are unknown until the database has been read once.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._unsaved: dict[str, float] = {}
        self._store: PostgresSignedOut | None = None
        self._started = clock()
        self._read_at: float | None = None
        self._lock = threading.Lock()

    def keep_in(self, store: PostgresSignedOut) -> None:
        """Save to this store from now on, and read from it."""
        self._store = store
        self._read_at = None

    def add(self, session: str, until: float) -> None:
        """Sign a session out; it would have lasted until this Unix time. `sync` saves it."""
        with self._lock:
            self._until[session] = self._unsaved[session] = until

    def knows(self, opened: float) -> bool:
        """Return whether a session opened at this Unix time is listed if it was signed out."""
        return self._store is None or self._read_at is not None or opened >= self._started

    def __contains__(self, session: str) -> bool:
        return session in self._until

    def is_due(self) -> bool:
        """Return whether there is something to save, or the last reading is 10 s old."""
        if self._store is None:
            return False
        stale = self._read_at is None or self._clock() - self._read_at >= READ_EVERY
        return stale or bool(self._unsaved)

    def sync(self) -> None:
        """Save what is not saved yet, and read what others saved; raises Unavailable."""
        if self._store is None:
            return
        unsaved = dict(self._unsaved)
        if unsaved:
            self._store.add(unsaved)
        found = self._store.read()
        now = self._clock()
        with self._lock:
            for session in unsaved:
                self._unsaved.pop(session, None)
            # What is in memory stays: this reading may be older than the last `add`.
            known = self._until | found
            self._until = {session: until for session, until in known.items() if until > now}
            self._read_at = now


SIGNED_OUT: Final = SignedOut()
"""One process serves all pages."""
