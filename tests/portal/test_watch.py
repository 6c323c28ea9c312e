"""Failures keep the last good overview."""

from __future__ import annotations

from datetime import UTC, datetime

from lowtide.core.errors import Unavailable
from lowtide.status.overview import Overview, Totals, Watch

NOW = datetime(2026, 1, 2, tzinfo=UTC)
OVERVIEW = Overview(NOW, Totals(1, 0, 0, 1, 0, 0), (), ())


class Source:
    """A database that fails on command."""

    def __init__(self) -> None:
        self.check_fails = self.read_fails = False
        self.reads = 0

    def check(self) -> None:
        if self.check_fails:
            raise Unavailable("down")

    def read(self, *, recent: int) -> Overview:
        self.reads += 1
        assert recent == 20
        if self.read_fails:
            raise Unavailable("unreadable")
        return OVERVIEW


def _watch(source: Source, *, api_fails: bool = False) -> Watch:
    ticks = iter(range(100))

    def probe() -> None:
        if api_fails:
            raise Unavailable("HTTP 503")

    return Watch(source, probe, clock=lambda: NOW, timer=lambda: float(next(ticks)))


def test_nothing_is_known_before_the_first_look() -> None:
    seen = _watch(Source()).seen
    assert (seen.overview, seen.database, seen.api) == (None, None, None)


def test_a_look_brings_overview_and_latency() -> None:
    watch = _watch(Source())
    watch.look()
    assert watch.seen.overview is OVERVIEW
    assert watch.seen.database is not None
    assert watch.seen.database.reachable
    assert watch.seen.database.latency == 1.0


def test_a_database_that_is_down_is_not_read() -> None:
    source = Source()
    watch = _watch(source)
    watch.look()
    source.check_fails = True
    watch.look()
    assert source.reads == 1
    assert watch.seen.overview is OVERVIEW
    assert watch.seen.database is not None
    assert watch.seen.database.problem == "down"


def test_a_failing_read_is_a_problem_of_the_database() -> None:
    source = Source()
    source.read_fails = True
    watch = _watch(source)
    watch.look()
    assert watch.seen.overview is None
    assert watch.seen.database is not None
    assert watch.seen.database.problem == "unreadable"


def test_the_api_fails_by_itself() -> None:
    watch = _watch(Source(), api_fails=True)
    watch.probe()
    watch.look()
    assert watch.seen.overview is OVERVIEW
    assert watch.seen.api is not None
    assert watch.seen.api.problem == "HTTP 503"
