"""Multiranges as Python and PostgreSQL read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowtide.core.runs import RUN_LINES, block_of, lines_of, multirange

if TYPE_CHECKING:
    from tests.worlds import World


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([], "{}", id="none"),
        pytest.param([7], "{[7,8)}", id="one"),
        pytest.param([3, 1, 2], "{[1,4)}", id="neighbours in any order"),
        pytest.param([1, 2, 4, 7, 8], "{[1,3),[4,5),[7,9)}", id="gaps"),
    ],
)
def test_multirange_of_lines(lines: list[int], expected: str) -> None:
    assert multirange(lines) == expected
    assert list(lines_of(expected)) == sorted(lines)


@pytest.mark.parametrize(("line", "block"), [(1, 1), (128, 1), (129, 129), (256, 129), (257, 257)])
def test_block_of_a_line(line: int, block: int) -> None:
    assert block_of(line) == block


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.sets(st.integers(1, RUN_LINES), min_size=1), most=st.integers(1, RUN_LINES))
def test_database_reads_multiranges_alike(world: World, lines: set[int], most: int) -> None:
    ordered = sorted(lines)
    (row,) = world.rows(
        """
        SELECT line_count(m) AS count, ARRAY(SELECT lines_in(m)) AS lines,
          first_lines(m, :most)::text AS first, (m - first_lines(m, :most))::text AS rest
        FROM (SELECT cast(:lines AS int4multirange) AS m) given
        """,
        lines=multirange(lines),
        most=most,
    )
    assert (row.count, row.lines) == (len(lines), ordered)
    assert list(lines_of(row.first)) == ordered[:most]
    assert list(lines_of(row.rest)) == ordered[most:]
