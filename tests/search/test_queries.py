"""The lookups of search texts."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.errors import InvalidRequest
from lowtide.core.ids import BatchId, FileId, format_batch_id, format_file_id, format_request_id
from lowtide.search.model import IdRange, RequestRange, after_prefix, parse_query

ID = UUID("01920000-7a35-75df-9d20-40a94a8639ea")
WHOLE = IdRange(ID, ID)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    ("text", "batches", "files", "requests"),
    [
        (format_batch_id(BatchId(ID)), WHOLE, None, None),
        (format_file_id(FileId(ID)), None, WHOLE, None),
        (format_request_id(BatchId(ID), 7), None, None, RequestRange(WHOLE, 7, 7)),
        (ID.hex, WHOLE, WHOLE, None),
        (str(ID), WHOLE, WHOLE, None),
        (f"{ID.hex}00000007", None, None, RequestRange(WHOLE, 7, 7)),
        (f"batch_req_{ID.hex}", None, None, RequestRange(WHOLE, 0, 2**31 - 1)),
        (f"batch_req_{ID.hex}0000001", None, None, RequestRange(WHOLE, 16, 31)),
        (f"batch_req_{ID.hex}f", None, None, None),
        (f"batch_req_{ID.hex}000000007", None, None, None),
        ("batch_", None, None, None),
        ("batch_01g", None, None, None),
        ("file-", None, None, None),
        ("nightly", None, None, None),
    ],
)
def test_text_is_looked_up_as_the_ids_it_may_be(
    text: str, batches: IdRange | None, files: IdRange | None, requests: RequestRange | None
) -> None:
    query = parse_query(f" {text} ")
    assert (query.text, query.batches, query.files, query.requests) == (
        text, batches, files, requests,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["batch_0192", "file-0192", "0192"])
def test_start_of_an_id_is_a_range_of_ids(text: str) -> None:
    query = parse_query(text)
    ids = query.batches or query.files
    assert ids == IdRange(UUID(hex="0192" + 28 * "0"), UUID(hex="0192" + 28 * "f"))
    assert not ids.is_exact


@pytest.mark.parametrize("text", ["", "a", "  a ", "x" * 513, "a\x00b"])
def test_text_that_cannot_be_searched_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="2 to 512 characters"):
        parse_query(text)


@given(TEXTS, TEXTS)
def test_texts_with_a_prefix_are_those_before_the_next_one(prefix: str, text: str) -> None:
    beyond = after_prefix(prefix).encode()
    assert prefix.encode() <= (prefix + text).encode() < beyond
    if prefix.encode() <= text.encode() < beyond:
        assert text.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("ab", "ac"), ("a\ud7ff", "a\ue000"), ("a\U0010ffff", "b"), ("\U0010ffff", "\U0010ffff" * 2)],
)
def test_text_after_a_prefix_is_valid_unicode(prefix: str, expected: str) -> None:
    assert after_prefix(prefix) == expected
