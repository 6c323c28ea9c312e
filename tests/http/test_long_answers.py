"""Long requests and responses are stored and served in pieces, byte for byte."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from lowtide.batches import request_store
from lowtide.batches.detail_store import BatchDetailStore
from lowtide.batches.results import FinishedLine, render
from lowtide.core.ids import DEFAULT_TENANT, BatchId, format_batch_id, new_id
from lowtide.core.pools import Pool
from lowtide.dead_letters.model import LetterFilter, LetterId
from lowtide.events.publisher import Publisher
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.finalize import Finalizer
from portal.pages.letter_table import read_excerpts
from tests.dead_letters.letters import batch_of_lines, dead
from tests.worker.workers import Sink
from tests.worlds import done

if TYPE_CHECKING:
    from tests.http.conftest import Api
    from tests.worlds import World

MIB = 1 << 20
WIDE = "é\u2028𝄞\x85x"
BODIES = {
    1: '{"n":1.0}',
    2: json.dumps({"text": WIDE * (MIB // 4)}, ensure_ascii=False),
    3: json.dumps("y" * (MIB + 1)),
    4: json.dumps("z" * (MIB - 2)),
    5: json.dumps("y" * (5 * MIB)),
    6: "{}",
}
"""Response bodies by line: short, long, and on either side of the limit."""


@pytest.fixture
def store(api: Api) -> ObstoreObjects:
    return ObstoreObjects(f"file://{api.objects}")


def _line(number: int, text: str) -> bytes:
    request = {
        "custom_id": str(number),
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "m", "text": text},
    }
    return json.dumps(request, ensure_ascii=False).encode()


@pytest.fixture
def lines() -> list[bytes]:
    sizes = {1: 1, 2: 5 * MIB // 4, 3: MIB // 4, 4: MIB, 5: 1, 6: 1}
    return [
        _line(number, WIDE[: size and 1] + WIDE * (size // 4)) for number, size in sizes.items()
    ]


@pytest.fixture
def batch(world: World, store: ObstoreObjects, lines: list[bytes]) -> BatchId:
    """A settled batch; every second request is a dead letter."""
    batch_id = batch_of_lines(world, store, lines)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    for claim in sorted(world.queue.claim(lease, Pool.SPOT, 100), key=lambda claim: claim.line):
        settled = done if claim.line % 2 else dead
        result: Any = settled(claim)
        body = BODIES[claim.line]
        world.queue.settle(lease, [replace(result, body=body.encode())], [])
    return batch_id


def _rendered(batch: BatchId, number: int) -> bytes:
    status = 200 if number % 2 else 500
    line = render(batch, FinishedLine(number, str(number), status, "r", BODIES[number]))
    return line.replace(b'"request_id":"r"', b"")


def _without_ids(content: bytes) -> list[bytes]:
    return [
        re.sub(rb'"request_id":"[^"]*"', b"", line) for line in content.splitlines(keepends=True)
    ]


@pytest.mark.parametrize(
    ("limit", "pages"),
    [
        pytest.param(1, [[1], [2], [3], [4], [5], [6]], id="one"),
        pytest.param(2, [[1, 2], [3, 4], [5], [6]], id="two"),
        pytest.param(1000, [[1, 2, 3], [4, 5], [6]], id="limited by size"),
    ],
)
def test_result_pages_are_limited_by_size(
    api: Api, batch: BatchId, limit: int, pages: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_store, "_PIECE", 300_001)
    path = f"/v1/batches/{format_batch_id(batch)}/results?limit={limit}"
    after = "0.0"
    for page in pages:
        response = api("GET", f"{path}&after={after}")
        assert _without_ids(response.data) == [_rendered(batch, number) for number in page]
        after = response.headers["x-lowtide-cursor"]
    assert api("GET", f"{path}&after={after}").data == b""


def test_only_last_page_is_marked_complete(
    api: Api, world: World, store: ObstoreObjects, batch: BatchId
) -> None:
    _finalize(world, store, batch)
    path = f"/v1/batches/{format_batch_id(batch)}/results"
    complete, after = [], "0.0"
    for _ in range(3):
        response = api("GET", f"{path}?after={after}")
        complete.append(response.headers["x-lowtide-complete"])
        after = response.headers["x-lowtide-cursor"]
    assert complete == ["false", "false", "true"]


def _finalize(world: World, store: ObstoreObjects, batch: BatchId) -> None:
    publisher = Publisher(Sink(), world.outbox)
    Finalizer(world.finals, JoinedObjects(store), publisher, new_id=new_id).finalize(batch)


def test_output_and_error_files_hold_long_results(
    api: Api, world: World, store: ObstoreObjects, batch: BatchId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_store, "_PIECE", 300_001)
    _finalize(world, store, batch)
    finished: Any = api("GET", f"/v1/batches/{format_batch_id(batch)}").json
    for role, rest in (("output_file_id", 1), ("error_file_id", 0)):
        content = api("GET", f"/v1/files/{finished[role]}/content").data
        expected = [_rendered(batch, number) for number in sorted(BODIES) if number % 2 == rest]
        assert _without_ids(content) == expected


def test_dead_letters_hold_long_inputs_and_outputs(
    api: Api, batch: BatchId, lines: list[bytes]
) -> None:
    inputs = api("GET", "/v1/dead_letters/content?which=input").data
    assert [json.loads(line) for line in inputs.splitlines()] == [
        json.loads(lines[number - 1]) for number in (2, 4, 6)
    ]
    assert len(inputs.decode().splitlines()) == 3
    outputs = api("GET", "/v1/dead_letters/content?which=output").data
    assert _without_ids(outputs) == [_rendered(batch, number) for number in (2, 4, 6)]
    letters: Any = api("GET", "/v1/dead_letters").json
    for letter in letters["data"]:
        details: Any = api("GET", f"/v1/dead_letters/{letter['id']}").json
        number = int(letter["custom_id"])
        assert details["input"] == json.loads(lines[number - 1])
        assert details["response"]["body"] == json.loads(BODIES[number])
    requeued: Any = api("POST", "/v1/dead_letters/requeue", json={"filter": {}}).json
    (new,) = requeued["batches"]
    file = api("GET", f"/v1/batches/{new['batch_id']}").json["input_file_id"]
    assert api("GET", f"/v1/files/{file}/content").data == inputs


def test_portal_reads_beginning_of_long_bodies(api: Api, world: World, batch: BatchId) -> None:
    store = BatchDetailStore(world.api)
    record = store.line(DEFAULT_TENANT, batch, 5)
    assert record.body is not None
    assert len(record.body) == 200_000
    assert record.body_bytes == 5 * MIB + 2
    letters, _ = api.app().services.dead_letters.page(
        DEFAULT_TENANT, LetterFilter(), after=None, limit=10
    )
    for letter in letters:
        excerpts = read_excerpts(
            api.app().services.dead_letters.get(DEFAULT_TENANT, LetterId(letter.batch, letter.line))
        )
        assert excerpts.body == BODIES[letter.line].encode()[:20_000].decode(errors="ignore")
        assert excerpts.shown.body_bytes == len(BODIES[letter.line].encode())
