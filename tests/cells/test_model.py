"""Which cell owns an id, and which one gets new work."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.cells.merging import Page, merged_pages
from lowtide.cells.model import Cell, Cells, Demand, Quote, Report, price_of
from lowtide.core.errors import InvalidRequest, Unavailable
from lowtide.core.ids import uuid7

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FIRST = Cell(1, "first", "http://first", "us", unnumbered_ids=True)
SECOND = Cell(2, "second", "http://second", "us")
THIRD = Cell(3, "third", "http://third", "eu")
CELLS = Cells([FIRST, SECOND, THIRD], {"bank": frozenset({"eu"})})
DAY = Demand("acme", window=86_400.0, model="qwen-8b")


def quote(price: float = 1.0, wait: float = 60.0, models: tuple[str, ...] = ("*",)) -> Report:
    return Report((Quote(models, price, wait),))


def placed(
    reports: dict[int, Report], demand: Demand = DAY, cells: Cells = CELLS, draws: int = 50
) -> set[int]:
    """Return the numbers of the cells that get the work, with many seeds."""
    return {cells.place(demand, reports, Random(seed)).number for seed in range(draws)}  # noqa: S311


def test_id_of_a_cell_is_owned_by_it_and_by_the_one_with_older_ids() -> None:
    assert CELLS.owners(uuid7(NOON, os.urandom, 3)) == [THIRD, FIRST, SECOND]
    assert CELLS.owners(uuid7(NOON, os.urandom, 2)) == [SECOND, FIRST, THIRD]
    assert CELLS.owners(uuid7(NOON, os.urandom, 1)) == [FIRST, SECOND, THIRD]
    assert CELLS.owners(uuid7(NOON, os.urandom)) == [FIRST, SECOND, THIRD]
    assert CELLS.owners(uuid7(NOON, os.urandom, 4)) == [FIRST, SECOND, THIRD]


def test_cheapest_cell_that_holds_the_deadline_gets_the_work() -> None:
    assert placed({1: quote(1.0), 2: quote(2.0), 3: quote(3.0)}) == {1}
    late = quote(0.1, wait=90_000)
    assert placed({1: late, 2: quote(2.0), 3: quote(3.0)}) == {2}
    assert placed({1: late, 2: quote(2.0, wait=100_000), 3: quote(3.0, wait=math.inf)}) == {1}


def test_nearly_as_cheap_cells_share_the_work_and_the_less_loaded_get_most() -> None:
    reports = {1: quote(1.0, wait=500), 2: quote(1.04, wait=100), 3: quote(1.03, wait=900)}
    draws = [CELLS.place(DAY, reports, Random(seed)).number for seed in range(300)]  # noqa: S311
    assert set(draws) == {1, 2}
    assert draws.count(2) > draws.count(1) > 50


def test_cell_whose_price_is_not_measured_yet_shares_the_work() -> None:
    new = Report((Quote(("*",), 30.0, 10.0, measured=False),))
    assert placed({1: quote(1.0, wait=20), 2: new, 3: quote(2.0)}) == {2}
    busy = Report((Quote(("*",), 0.1, 1000.0, measured=False),))
    assert placed({1: quote(1.0, wait=20), 2: busy, 3: quote(1.0, wait=10)}) == {1, 3}
    assert placed({1: quote(1.0), 2: Report((Quote(("*",), 1.0, None, measured=False),))}) == {1}


def test_residency_is_kept_even_if_no_such_cell_answers() -> None:
    reports = {1: quote(1.0), 2: quote(1.0), 3: quote(9.0)}
    bank = Demand("bank", 86_400.0)
    assert placed(reports, bank) == {3}
    del reports[3]
    with pytest.raises(Unavailable):
        placed(reports, bank)


def test_model_is_known_to_be_missing_only_if_all_cells_answer() -> None:
    reports = {1: quote(models=("llama-*",)), 2: quote(models=("other",)), 3: quote(models=())}
    assert placed(reports, Demand("acme", 86_400.0, "llama-70b")) == {1}
    with pytest.raises(InvalidRequest, match="qwen-8b") as refused:
        placed(reports)
    assert refused.value.param == "model"
    del reports[3]
    with pytest.raises(Unavailable):
        placed(reports)


def test_cell_that_does_not_accept_work_gets_none() -> None:
    cells = Cells([replace(FIRST, accepts_work=False), SECOND])
    assert placed({1: quote(0.1), 2: quote(2.0)}, cells=cells) == {2}


def test_price_of_a_request_is_that_of_its_replica_seconds() -> None:
    assert price_of(3.6, rate=2.0) == pytest.approx(0.0005)
    assert price_of(3.6, rate=0.0) == math.inf


@given(
    st.lists(st.uuids(), max_size=100, unique=True),
    st.integers(1, 5),
    st.integers(1, 10),
    st.booleans(),
)
def test_merged_pages_are_the_page_of_all(
    ids: list[UUID], count: int, limit: int, newest_first: bool
) -> None:
    every = sorted(ids, reverse=newest_first)
    pages = [
        Page(
            [msgspec.Raw(b'{"id": "%s"}' % id_.hex.encode()) for id_ in own[:limit]],
            len(own) > limit,
        )
        for own in (every[cell::count] for cell in range(count))
    ]
    merged = merged_pages(pages, UUID, limit, newest_first=newest_first)
    listed = [UUID(msgspec.json.decode(raw)["id"]) for raw in merged["data"]]
    assert listed == every[:limit]
    assert merged["has_more"] is (len(every) > limit)
