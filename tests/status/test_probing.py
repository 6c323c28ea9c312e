"""Probes of parts."""

from __future__ import annotations

from datetime import UTC, datetime

from lowtide.core.errors import Unavailable
from lowtide.status.overview import Probing

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_each_part_is_told_by_itself() -> None:
    def broken() -> None:
        raise Unavailable("No answer.")

    times = iter([1.0, 1.5, 2.0, 4.0])
    probing = Probing(
        {"bad": broken, "good": lambda: None}, clock=lambda: NOW, timer=lambda: next(times)
    )
    assert probing.found == {}
    probing.probe()
    assert probing.found["bad"].problem == "No answer."
    assert probing.found["good"].reachable
    assert (probing.found["bad"].latency, probing.found["good"].latency) == (0.5, 2.0)
