"""Results are read byte for byte, at any length and across any number of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.pipeline import final_store

if TYPE_CHECKING:
    from lowtide.batches.results import FinishedLine
    from lowtide.core.ids import BatchId
    from tests.worlds import World

ODD = [
    '{"a": "\\u0000 \\ud83d\\ude00 \\" \\\\ \\n"}',
    '{ "é𝄞\u2028" :\t[1.0, 1e400, 123456789012345678901234567890 ]\r\n}',
    '"\x7f"',
    "",
    "[" * 100 + "]" * 100,
]


def _batch_with_results(world: World, bodies: list[str]) -> BatchId:
    batch = world.batch(len(bodies))
    world.run(
        "INSERT INTO results SELECT :b, tenant_id, :b, now(), now(), line, 1, 1, 200, 1, 0, true,"
        " false, false, 'spot', 'r', (cast(:bodies AS text[]))[line] FROM queue WHERE batch_id = :b",
        b=batch,
        bodies=bodies,
    )
    world.cancel(batch)
    return batch


def _results(world: World, batch: BatchId) -> list[FinishedLine]:
    job = world.finals.job(batch)
    assert job is not None
    return list(world.finals.lines(job, ("cancelled", "It was.")))


def test_bodies_are_read_byte_for_byte(world: World) -> None:
    assert [line.body for line in _results(world, _batch_with_results(world, ODD))] == ODD


@pytest.mark.parametrize(
    ("sizes", "page_bytes"),
    [
        pytest.param([500] * 30, 1000, id="a few per page"),
        pytest.param([10] * 20 + [5000] * 3 + [10] * 20, 1000, id="long ones between"),
        pytest.param([5000] * 4, 1, id="each longer than a page"),
        pytest.param([0] * 40, 1000, id="empty"),
    ],
)
def test_long_bodies_shorten_pages_and_lose_no_result(
    world: World, monkeypatch: pytest.MonkeyPatch, sizes: list[int], page_bytes: int
) -> None:
    longest = 0
    decode = final_store._decode_page

    def measured(page: str) -> list[FinishedLine]:
        nonlocal longest
        results = decode(page)
        longest = max(longest, sum(len(line.body or "") for line in results[:-1]))
        return results

    monkeypatch.setattr(final_store, "_PAGE_BYTES", page_bytes)
    monkeypatch.setattr(final_store, "_FIRST_PAGE", 16)
    monkeypatch.setattr(final_store, "_decode_page", measured)
    bodies = [str(number % 10) * size for number, size in enumerate(sizes)]
    stored = _results(world, _batch_with_results(world, bodies))
    assert [line.number for line in stored] == list(range(1, len(sizes) + 1))
    assert [line.body for line in stored] == bodies
    assert longest < page_bytes
