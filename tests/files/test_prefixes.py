"""The order by prefix: groups of prompts that begin alike, in the order of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.files.index import IndexWriter, SegmentSize
from lowtide.files.lines import Limits, LineReader
from lowtide.files.prefixes import WINDOW, places
from lowtide.objects.store import ObstoreObjects

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT = "/v1/chat/completions"


def text(name: str, length: int) -> str:
    """Return a text of this length that shares nothing with those of other names."""
    return (f"{name} " * length)[:length]


def chat(*messages: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a chat request, `model` first."""
    said = [{"role": "user", "content": message} for message in messages]
    return {"model": "m", **fields, "messages": said}


def content_of(bodies: Sequence[dict[str, Any]], url: str = CHAT) -> bytes:
    """Return a file of these bodies."""
    head = {"method": "POST", "url": url}
    lines = [{"custom_id": f"r{n}", **head, "body": body} for n, body in enumerate(bodies, 1)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def order_of(content: bytes, *, limits: Limits | None = None) -> list[int]:
    """Return the numbers of a file's requests in the order by prefix."""
    reader = LineReader(limits)
    lines = reader.feed(content) + reader.finish()
    assert not reader.problems
    return [
        number for _, number in sorted(zip(places(lines), (n.number for n in lines), strict=True))
    ]


A, B, C = (text(name, 3000) for name in "abc")
LONG = text("instructions", 1500)


@pytest.mark.parametrize(
    ("bodies", "order"),
    [
        ([chat(A, "1"), chat(B, "2"), chat(A, "3"), chat(B, "4")], [1, 3, 2, 4]),
        ([chat(A, "1"), chat(A, "2"), chat(B, "3"), chat(B, "4")], [1, 2, 3, 4]),
        ([chat(C, "1"), chat(A, "2"), chat(B, "3")], [1, 2, 3]),
        ([chat(A, "1"), chat("short"), chat(A, "3"), chat("short")], [1, 3, 2, 4]),
        (
            # By instructions, then by document; the first ones of a group are not compared further.
            [
                chat(LONG + A, "1"),
                chat(LONG + B, "2"),
                chat(C, "3"),
                chat(LONG + A, "4"),
                chat(LONG + B, "5"),
                chat(LONG + A, "6"),
            ],
            [1, 2, 4, 6, 5, 3],
        ),
        ([chat(A, "1", seed=7), chat(B, "2"), chat(A, "3", seed=8, n=2)], [1, 3, 2]),
        ([chat(A, text("q", 900)), chat(B), chat(A, text("r", 900)), chat(A)], [1, 3, 4, 2]),
    ],
    ids=[
        "in turns",
        "grouped already",
        "nothing in common",
        "short prompts keep their order",
        "nested",
        "other fields do not matter",
        "different ends",
    ],
)
def test_requests_that_begin_alike_are_next_to_each_other(
    bodies: list[dict[str, Any]], order: list[int]
) -> None:
    content = content_of(bodies)
    assert order_of(content) == order
    in_order = list(range(1, len(bodies) + 1))
    assert order_of(content, limits=Limits(prefix_order=False)) == in_order


@pytest.mark.parametrize(
    ("url", "field", "is_ordered"),
    [
        ("/v1/completions", "prompt", True),
        ("/v1/responses", "input", True),
        ("/v1/embeddings", "input", False),
        ("/v1/moderations", "input", False),
    ],
)
def test_prompts_of_other_endpoints(url: str, field: str, *, is_ordered: bool) -> None:
    bodies = [{"model": "m", field: each} for each in (A, B, A)]
    assert order_of(content_of(bodies, url)) == ([1, 3, 2] if is_ordered else [1, 2, 3])


TEXTS = st.sampled_from([A, B, C, LONG + A, LONG + B, "short"])


@given(st.lists(st.tuples(TEXTS, st.text("qrs", max_size=700)), min_size=1, max_size=30))
def test_each_request_has_one_place_and_each_group_is_together(
    drawn: list[tuple[str, str]],
) -> None:
    content = content_of([chat(prompt, question) for prompt, question in drawn])
    order = order_of(content)
    assert sorted(order) == list(range(1, len(drawn) + 1))
    for prompt in (A, B, C):
        at = [place for place, number in enumerate(order) if drawn[number - 1][0] == prompt]
        assert not at or at == list(range(at[0], at[0] + len(at)))


def test_windows_and_rows_do_not_depend_on_chunks_or_segments() -> None:
    prompts = [text(f"p{n}", 600) for n in range(7)]
    count = WINDOW + 50
    content = content_of([chat(prompts[n * n % 7], str(n)) for n in range(count)])
    indexes = set()
    for chunk, size in (
        (1 << 18, SegmentSize()),
        (50_001, SegmentSize(999)),
        (len(content), SegmentSize(5000)),
    ):
        objects, reader = ObstoreObjects("memory://"), LineReader()
        with IndexWriter(objects, "index", size) as index:
            for start in range(0, len(content), chunk):
                index.add(reader.feed(content[start : start + chunk]))
            index.add(reader.finish())
        whole = b"".join(objects.stream("index"))
        assert index.segments[-1].end == len(whole)
        assert sum(segment.lines for segment in index.segments) == count
        assert all(
            whole[each.start : each.end].count(b"\n") == each.lines for each in index.segments
        )
        indexes.add(whole)
    (whole,) = indexes
    placed = [int(row.split(b"\t")[4]) for row in whole.splitlines()]
    assert sorted(placed[:WINDOW]) == list(range(1, WINDOW + 1))
    assert placed[:WINDOW] != sorted(placed[:WINDOW])
    assert sorted(placed[WINDOW:]) == list(range(WINDOW + 1, count + 1))
