"""Repeated custom_ids: exact in small files, in bounded memory in large ones."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.files import checks, custom_ids
from lowtide.files.custom_ids import CustomIds, repeated
from lowtide.files.index import IndexRow
from lowtide.files.lines import LineReader
from lowtide.files.validation import validate_stream
from tests.http.forms import line
from tests.pipeline.segmented import Installation

if TYPE_CHECKING:
    from tests.worlds import World


def _found(ids: list[str], exact: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the repeated ids known at once, and those found at the end, as (first, again)."""
    kept = CustomIds(exact)
    at_once = []
    for number, custom_id in enumerate(ids, 1):
        first = kept.first_line(custom_id, number)
        if first != number:
            at_once.append((first, number))
        kept.compact()
    rows = [IndexRow(number, number, custom_id) for number, custom_id in enumerate(ids, 1)]
    return at_once, [
        (each.first.number, each.again.number) for each in repeated(rows, kept.suspects())
    ]


_IDS = st.lists(st.sampled_from(["a", "b", "é", "x" * 65, "x" * 512, *map(str, range(30))]))


@given(_IDS, st.integers(0, 40))
def test_every_repeated_id_is_found_and_no_other(ids: list[str], exact: int) -> None:
    expected = {
        (ids.index(custom_id) + 1, number)
        for number, custom_id in enumerate(ids, 1)
        if ids.index(custom_id) + 1 < number
    }
    at_once, later = _found(ids, exact)
    if len(set(ids)) <= exact:
        assert (set(at_once), later) == (expected, [])
    else:
        assert set(at_once) | set(later) == expected


def test_ids_that_share_a_fingerprint_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_ids, "hash", lambda _: 7, raising=False)
    ids = [str(number) for number in range(50)]
    assert _found(ids, 10) == ([], [])
    assert _found([*ids, "3"], 10) == ([], [(4, 51)])


@pytest.fixture
def few_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CustomIds", lambda: CustomIds(exact=20))


@pytest.mark.usefixtures("few_exact")
def test_large_file_names_both_lines_of_a_repeated_id(world: World) -> None:
    installation = Installation.of(world)
    lines = [b"\n", *(line(str(number)) for number in range(1, 101)), b"\n \n"]
    whole = installation.upload(lines)
    assert (whole.status, whole.lines) == ("processed", 100)
    file = installation.upload([*lines, line("40"), line("40"), line("90")])
    assert file.status == "error"
    assert file.status_details == (
        "line 104: custom_id '40' is already used on line 41: make each one unique. "
        "line 105: custom_id '40' is already used on line 41: make each one unique. "
        "line 106: custom_id '90' is already used on line 91: make each one unique."
    )
    assert (file.index_key, file.segments) == (None, None)
    assert world.rows("SELECT * FROM orphan_objects") == []
    batch = world.new_batch(input_file=file.id)
    installation.splitter().split(batch)
    row = world.row(batch)
    assert row.status == "failed"
    assert [problem["line"] for problem in row.errors] == [104, 105, 106]


@pytest.mark.usefixtures("few_exact")
def test_offline_validation_finds_repeated_ids_of_a_large_file() -> None:
    lines = [line(str(number)) for number in range(1, 101)]
    reader = LineReader()
    validate_stream(BytesIO(b"".join(lines)), reader)
    assert reader.problems == []
    reader = LineReader()
    validate_stream(BytesIO(b"\n" + b"".join([*lines, line("40")])), reader)
    (problem,) = reader.problems
    assert (problem.code, problem.line) == ("duplicate_custom_id", 102)
    assert "already used on line 41" in problem.message


_MEASURED = """
import resource
from lowtide.files.custom_ids import CustomIds
ids = CustomIds()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range({count}):
    ids.short(f"request-{{number:08d}}", number)
    ids.compact() if number % 1000 == 0 else None
assert not ids.suspects()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_million_ids_take_few_bytes_each() -> None:
    """The exact ids take most of this; each further id takes six to seven bytes."""
    grown = [
        int(
            subprocess.run(
                [sys.executable, "-c", _MEASURED.format(count=count)],
                check=True,
                capture_output=True,
            ).stdout
        )
        * (1 if sys.platform == "darwin" else 1024)
        for count in (250_000, 1_250_000)
    ]
    assert grown[1] - grown[0] < 1_000_000 * 12
    assert grown[1] < 100_000_000
