"""How many workers a stack starts for more requests than any number of workers has at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.engine import commanded_engine
from tests.conformance.lines import held, jsonl
from tests.e2e.stacks import running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.engine import Engine

REQUESTS = 400
SPOT = "LOWTIDE_SPOT_REPLICAS"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with commanded_engine() as made:
        yield made


@pytest.mark.parametrize(
    ("name", "user", "workers", "notice"),
    [
        ("default", {}, 1, "at most one spot and one dedicated"),
        ("three", {SPOT: "3"}, 3, "at most one dedicated"),
    ],
)
def test_workers_of_one_engine_are_bounded(
    engine: Engine, name: str, user: dict[str, str], workers: int, notice: str
) -> None:
    settings = {"LOWTIDE_ENGINE": "openai", "LOWTIDE_ENGINE_URL": engine.url, **user}
    with running(settings) as stack:
        assert stack.status()["notice"].startswith(notice)
        batch = stack.submit(stack.upload(jsonl(*held(name, REQUESTS))))
        until(
            lambda: [one.state for one in stack.workers()] == ["ready"] * workers,
            f"{workers} workers run",
        )
        engine.release(name)
        stack.follow(batch)
        assert len(stack.seen_workers) <= workers
