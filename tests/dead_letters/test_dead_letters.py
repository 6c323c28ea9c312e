"""Rules of dead letters that need no database."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.ids import BatchId, format_batch_id
from lowtide.dead_letters.model import (
    SOURCE_KEY,
    LetterFilter,
    LetterLocation,
    LetterState,
    Requeued,
    Selection,
    Source,
    by_batch,
    copy_metadata,
    in_blocks,
    of_few_sources,
    requeue_filename,
)

FIRST, SECOND = (BatchId(UUID(int=number)) for number in (1, 2))


def _source(metadata: dict[str, str] | None) -> Source:
    return Source(FIRST, "u", "k", True, "/v1/embeddings", "24h", metadata, None)


def _places(*batches: BatchId) -> list[LetterLocation]:
    return [
        LetterLocation(batch, line, line * 10, 7) for line, batch in enumerate(batches, start=1)
    ]


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        pytest.param(None, {}, id="none"),
        pytest.param({"team": "harbour"}, {"team": "harbour"}, id="some"),
        pytest.param(
            {"dead_letters_of": "batch_x", "rerun_of": "batch_y", "a": "b"},
            {"a": "b"},
            id="copies of copies",
        ),
        pytest.param({str(n): "v" for n in range(16)}, {str(n): "v" for n in range(15)}, id="full"),
    ],
)
def test_metadata_of_copies_keeps_fields_and_names_source(
    metadata: dict[str, str] | None, kept: dict[str, str]
) -> None:
    copied = copy_metadata(_source(metadata), SOURCE_KEY)
    assert copied == kept | {"dead_letters_of": format_batch_id(FIRST)}
    assert len(copied) <= 16


def test_requeue_file_is_named_after_source() -> None:
    assert requeue_filename(FIRST) == f"{format_batch_id(FIRST)}_dead_letters.jsonl"


@pytest.mark.parametrize(
    ("letter_filter", "expected"),
    [
        (LetterFilter(), "all"),
        (LetterFilter(error_code="timeout"), "error_code=timeout"),
        (
            LetterFilter(FIRST, "x", LetterState.OPEN),
            f"batch_id={format_batch_id(FIRST)} error_code=x state=open",
        ),
    ],
)
def test_filter_is_formatted_for_audit_log(letter_filter: LetterFilter, expected: str) -> None:
    assert str(letter_filter) == expected


def test_letters_are_grouped_by_batch() -> None:
    places = _places(FIRST, SECOND, FIRST)
    assert by_batch(places) == {FIRST: [places[0], places[2]], SECOND: [places[1]]}


@pytest.mark.parametrize(("max_sources", "kept"), [(0, []), (1, [0, 2]), (2, [0, 1, 2])])
def test_letters_are_limited_to_few_sources(max_sources: int, kept: list[int]) -> None:
    places = _places(FIRST, SECOND, FIRST)
    assert of_few_sources(places, max_sources) == [places[number] for number in kept]


def test_already_requeued_sums_earlier_requeues() -> None:
    earlier = (Requeued(FIRST, SECOND, 2), Requeued(SECOND, FIRST, 3))
    assert Selection(requeued=earlier, discarded=4).already_requeued == 5


@given(
    st.lists(st.tuples(st.sampled_from([FIRST, SECOND]), st.integers(0, 50)), max_size=30),
    st.integers(1, 100),
)
def test_blocks_keep_all_letters_in_order(
    letters: list[tuple[BatchId, int]], max_bytes: int
) -> None:
    places = _places(*(batch for batch, _ in letters))
    sizes = [size for _, size in letters]
    blocks = list(in_blocks(places, sizes, max_bytes))
    assert [place for block in blocks for place in block] == places
    size_of = dict(zip((place.line for place in places), sizes, strict=True))
    for block in blocks:
        assert len({place.batch for place in block}) == 1
        assert len(block) == 1 or sum(size_of[place.line] for place in block) <= max_bytes
