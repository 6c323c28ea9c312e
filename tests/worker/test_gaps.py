"""Models that an engine lacks: probes for them, and claims once they are found."""

from __future__ import annotations

from lowtide.engines.model import Ping
from lowtide.worker.engine_state import ModelGaps

A = Ping("/v1/chat/completions", "a")
NONE = Ping("/v1/moderations")


def test_missing_model_is_probed_ever_less_often_until_found() -> None:
    gaps = ModelGaps()
    assert gaps.miss(A, 0.0)
    assert not gaps.miss(A, 0.1)
    assert (gaps.missing, gaps.due(0.4), gaps.due(0.5)) == (frozenset({"a"}), None, A)
    gaps.still_missing(A, 0.5)
    assert gaps.times == [1.5]
    assert gaps.found(["b", "a"], 2.0)
    assert not gaps.found(["a"], 2.0)
    assert gaps.missing == frozenset()
    # A model that is missing again soon after keeps its probe interval.
    assert gaps.miss(A, 3.0)
    assert gaps.times == [5.0]


def test_found_model_is_forgotten_later() -> None:
    gaps = ModelGaps()
    gaps.miss(A, 0.0)
    gaps.found(["a"], 1.0)
    assert gaps
    assert gaps.due(301.0) is None
    assert not gaps


def test_requests_without_model_share_one_gap() -> None:
    gaps = ModelGaps()
    gaps.miss(NONE, 0.0)
    assert gaps.missing == {""}
    gaps.forget(NONE)
    gaps.still_missing(NONE, 1.0)
    assert not gaps
