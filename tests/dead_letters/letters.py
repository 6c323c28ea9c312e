"""Batches with dead letters, and their input in a store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import Pool
from lowtide.dead_letters.model import LetterId
from lowtide.files.lines import Limits
from lowtide.pipeline.split import Splitter
from tests.fleets.single import SINGLE
from tests.worker.workers import Sink, WaitingPublisher
from tests.worlds import done

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from lowtide.core.ids import BatchId, TenantId
    from lowtide.objects.store import ObjectStore
    from lowtide.queue.claims import Claim, Finished
    from tests.worlds import World

# Details that a requeue must preserve: spaces, the order of fields, escapes, numbers.
ODD = (
    b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}',
    b'  {"body" : {"model":"m", "n":1.0E+2, "t":"\\u00e9\\/"},  "url":"/v1/embeddings","method":"POST", "custom_id":"%d"}\t',
    '{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"model":"m","t":"é😀"}}\r'.encode(),
)
ANSWER = b'{"error": {"message": "No", "n": 1.50}}'


def source_lines(count: int) -> list[bytes]:
    """Return lines of a file, with whitespace around some of them, without line feeds."""
    return [ODD[number % len(ODD)] % number for number in range(1, count + 1)]


def batch_of_lines(
    world: World,
    store: ObjectStore,
    lines: Iterable[bytes],
    tenant: TenantId = DEFAULT_TENANT,
    **changes: Any,
) -> BatchId:
    """Create and split a batch of these lines; the last one has no line feed."""
    lines = list(lines)
    file = world.file(tenant, lines=len(lines))
    with store.open_writer(file.object_key) as writer:
        writer.write(b"\n".join(lines))
    batch = world.new_batch(tenant, input_file=file.id, **changes)
    splitter = Splitter(
        world.splits, store, Limits(), SINGLE, WaitingPublisher(Sink(), world.outbox)
    )
    splitter.split(batch)
    for segment in world.rows("SELECT number FROM segments WHERE split_at IS NULL"):
        splitter.split_segment(batch, segment.number)
    assert world.row(batch).status == "in_progress"
    return batch


def dead(claim: Claim, status_code: int | None = 500) -> Finished:
    """Return the last failure of a request: an HTTP error, or no answer."""
    failed = replace(done(claim, succeeded=False, body=ANSWER), dead_letter=True)
    if status_code is not None:
        return replace(failed, status_code=status_code)
    return replace(
        failed,
        status_code=None,
        body=None,
        error_code="timeout",
        error_message="No answer in 30 s.",
    )


def bury(
    world: World, batch: BatchId, lines: Collection[int], *, status_code: int | None = 500
) -> list[LetterId]:
    """Settle all waiting requests: dead-letter these of the batch, complete all others."""
    lease = world.queue.open_lease(Pool.SPOT, "w")
    while claims := world.queue.claim(lease, Pool.SPOT, 1000):
        finished = [
            dead(claim, status_code)
            if claim.batch == batch and claim.line in lines
            else done(claim)
            for claim in claims
        ]
        world.queue.settle(lease, finished, [])
    assert world.lines("dead_letters", batch) == sorted(lines)
    return [LetterId(batch, line) for line in sorted(lines)]


def custom_ids(content: bytes) -> list[str]:
    """Return the custom_ids of NDJSON, in order."""
    return [json.loads(line)["custom_id"] for line in content.splitlines()]
