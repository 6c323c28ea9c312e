"""Public ids: one-to-one with UUIDs, ordered by time, strictly parsed."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.ids import (
    LAST_CELL,
    BatchId,
    FileId,
    PartId,
    UploadId,
    cell_of,
    derived_file_id,
    derived_part_id,
    format_batch_id,
    format_file_id,
    format_part_id,
    format_request_id,
    format_upload_id,
    parse_batch_id,
    parse_file_id,
    parse_part_id,
    parse_request_id,
    parse_upload_id,
    uuid7,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@given(st.uuids())
def test_ids_survive_a_round_trip(value: uuid.UUID) -> None:
    assert parse_batch_id(format_batch_id(BatchId(value))) == value
    assert parse_file_id(format_file_id(FileId(value))) == value
    assert parse_upload_id(format_upload_id(UploadId(value))) == value
    assert parse_part_id(format_part_id(PartId(value))) == value


@given(st.uuids(), st.integers(1, 2**31 - 1))
def test_request_ids_survive_a_round_trip(value: uuid.UUID, line: int) -> None:
    assert parse_request_id(format_request_id(BatchId(value), line)) == (value, line)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(f"batch_{'0' * 40}", id="another kind"),
        pytest.param(f"batch_req_{'0' * 39}", id="too short"),
        pytest.param(f"batch_req_{'0' * 40}1", id="too long"),
        pytest.param(f"batch_req_{'0' * 40}", id="line 0"),
        pytest.param(f"batch_req_{'0' * 32}80000000", id="line out of range"),
        pytest.param(f"batch_req_{'0' * 32}0000000g", id="not hexadecimal"),
        pytest.param(f"batch_req_{'0' * 32}0000000\u0661", id="another script's digit"),
        pytest.param(f"batch_req_{'0' * 32}-0000001", id="a sign"),
        pytest.param(f"batch_req_{'A' * 32}00000001", id="upper case"),
    ],
)
def test_invalid_request_id_is_not_parsed(text: str) -> None:
    assert parse_request_id(text) is None


@given(st.text())
def test_parsed_batch_id_is_canonical(text: str) -> None:
    batch = parse_batch_id(text)
    assert batch is None or format_batch_id(batch) == text


_HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("batch_", id="no digits"),
        pytest.param(_HEX, id="no prefix"),
        pytest.param(f"file-{_HEX}", id="another kind"),
        pytest.param(f"batch_{_HEX[:-1]}", id="too short"),
        pytest.param(f"batch_{_HEX}0", id="too long"),
        pytest.param(f"batch_{_HEX.upper()}", id="upper case"),
        pytest.param(f"batch_{_HEX[:-1]}g", id="not hexadecimal"),
        pytest.param(f"batch_{_HEX[:-1]}\u0661", id="another script's digit"),
        pytest.param(f"batch_{_HEX[:-2]}\x00\x00", id="NUL"),
        pytest.param(f"batch_{{{_HEX[:-2]}}}", id="braces"),
        pytest.param(f"batch_batch_{_HEX}", id="prefix twice"),
        pytest.param(f"batch_../../{_HEX[:-6]}", id="path"),
    ],
)
def test_invalid_batch_id_is_not_parsed(text: str) -> None:
    assert parse_batch_id(text) is None


def test_uuid7_has_version_and_sorts_by_time() -> None:
    def all_ones(count: int) -> bytes:
        return b"\xff" * count

    def all_zeros(count: int) -> bytes:
        return b"\x00" * count

    early = uuid7(NOON, all_ones)
    late = uuid7(NOON + timedelta(milliseconds=1), all_zeros)
    assert early < late
    for id_ in (early, late):
        assert (id_.version, id_.variant) == (7, uuid.RFC_4122)
    assert early.int >> 80 == int(NOON.timestamp() * 1000)


_MICROSECONDS = st.integers(0, 10**9).map(lambda count: NOON + timedelta(microseconds=count))


@given(_MICROSECONDS, st.integers(1, LAST_CELL), st.binary(min_size=8, max_size=8))
def test_ids_of_a_cell_name_it_and_sort_with_all_others(
    at: datetime, cell: int, random: bytes
) -> None:
    ours = uuid7(at, lambda _: random, cell)
    plain = uuid7(at, lambda _: random)
    later = uuid7(at + timedelta(microseconds=1), lambda _: bytes(8))
    assert (cell_of(ours), cell_of(plain)) == (cell, None)
    assert (ours.version, ours.variant) == (7, uuid.RFC_4122)
    assert max(ours, plain) < later


@given(_MICROSECONDS, st.integers(1, LAST_CELL), st.binary(min_size=8, max_size=8))
def test_derived_ids_keep_the_cell(at: datetime, cell: int, random: bytes) -> None:
    batch = BatchId(uuid7(at, lambda _: random, cell))
    output, error = (derived_file_id(batch, role) for role in ("output", "error"))
    part = derived_part_id(UploadId(batch), 1)
    assert {cell_of(id_) for id_ in (output, error, part)} == {cell}
    assert len({batch, output, error, part}) == 4


def test_ids_without_a_cell_are_derived_as_ever() -> None:
    """A finalization that an upgrade interrupts finds its pieces again."""
    batch = BatchId(uuid7(NOON, lambda _: bytes(8)))
    assert derived_file_id(batch, "output").hex == "019b796dd6007fbbbbb81c9688bdf197"


@given(st.uuids(), st.sampled_from(["output", "error"]))
def test_derived_file_ids_are_stable_and_distinct(value: uuid.UUID, role: str) -> None:
    batch = BatchId(value)
    file = derived_file_id(batch, role)
    assert file == derived_file_id(batch, role)
    assert file.version == 7
    assert file.int >> 80 == value.int >> 80
    assert derived_file_id(batch, "output") != derived_file_id(batch, "error")


def test_request_id_encodes_batch_and_line() -> None:
    batch = BatchId(uuid.UUID(int=5))
    assert format_request_id(batch, 255) == f"batch_req_{batch.hex}000000ff"
    assert len({format_request_id(batch, line) for line in range(1, 1000)}) == 999
