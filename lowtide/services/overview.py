"""Watching the installation."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from lowtide.domain.errors import LowtideError
from lowtide.domain.overview import Overview, Reachability

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

RECENT_BATCHES = 20


class OverviewSource(Protocol):
    """Where overviews come from."""

    def check(self) -> None:
        """Raise when the source does not answer."""
        ...

    def read(self, *, recent: int) -> Overview:
        """Return an overview with the newest `recent` batches; raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """The last that was seen; None is what was never looked at."""

    overview: Overview | None = None
    database: Reachability | None = None
    api: Reachability | None = None


class Watch:
    """Looks at the installation and keeps the last good overview through failures.

    `look` and `probe` never raise what a failing dependency raises, and may run on two threads at
    once, each once at a time. `probe_api` raises a LowtideError when the API does not answer.
    """

    def __init__(
        self,
        source: OverviewSource,
        probe_api: Callable[[], None],
        *,
        clock: Callable[[], datetime],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._source = source
        self._probe_api = probe_api
        self._clock = clock
        self._timer = timer
        self._database = Seen()
        self._api: Reachability | None = None

    @property
    def seen(self) -> Seen:
        """The last that was seen."""
        return replace(self._database, api=self._api)

    def look(self) -> None:
        """Read the database."""
        database = self._measure(self._source.check)
        overview = self._database.overview
        if database.reachable:
            try:
                overview = self._source.read(recent=RECENT_BATCHES)
            except LowtideError as error:
                database = replace(database, problem=error.message)
        self._database = Seen(overview, database)

    def probe(self) -> None:
        """Ask the API."""
        self._api = self._measure(self._probe_api)

    def _measure(self, probe: Callable[[], None]) -> Reachability:
        start = self._timer()
        problem = None
        try:
            probe()
        except LowtideError as error:
            problem = error.message
        return Reachability(self._clock(), self._timer() - start, problem)
