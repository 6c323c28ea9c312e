"""A batch of many small segments, and the functions that split it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.files.index import SegmentSize
from lowtide.files.lines import ENDPOINTS, Limits
from lowtide.files.service import Files, UploadLimits
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.split import Splitter
from tests.fleets.single import SINGLE
from tests.http.forms import line
from tests.worker.workers import Sink, WaitingPublisher

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowtide.core.ids import BatchId
    from lowtide.events.model import Event
    from lowtide.files.model import StoredFile
    from lowtide.pipeline.split_store import SplitStore
    from tests.worlds import World

LINES, SIZE = 100, SegmentSize(max_lines=9)
"""A file of LINES requests has 12 segments of SIZE; the last one has one request."""


@dataclass
class Installation:
    """The services of one installation with small segments."""

    world: World
    objects: JoinedObjects
    sink: Sink

    @classmethod
    def of(cls, world: World) -> Installation:
        return cls(world, JoinedObjects(ObstoreObjects("memory://")), Sink())

    def upload(self, lines: Iterable[bytes], size: SegmentSize = SIZE) -> StoredFile:
        limits = UploadLimits(10**9, 3600, Limits(), ENDPOINTS, size)
        files = Files(
            self.world.files, self.objects, limits, new_id=new_id, clock=lambda: datetime.now(UTC)
        )
        with files.upload(DEFAULT_TENANT) as upload:
            for each in lines:
                upload.write(each)
            return upload.finish("in.jsonl", "batch")

    def splitter(self, splits: SplitStore | None = None, **changes: Any) -> Splitter:
        publisher = WaitingPublisher(self.sink, self.world.outbox)
        whole: dict[str, Any] = {"size": SIZE} | changes
        splits = splits or self.world.splits
        return Splitter(splits, self.objects, Limits(), SINGLE, publisher, **whole)

    def batch(self, lines: int = LINES, **changes: Any) -> BatchId:
        """Create a batch of an uploaded file with so many requests; it is not split yet."""
        file = self.upload(line(str(number)) for number in range(1, lines + 1))
        return self.world.new_batch(input_file=file.id, **changes)

    def deliver(self, splitter: Splitter, events: Iterable[Event]) -> None:
        """Handle events of segments as the function does."""
        for event in events:
            batch = next(
                row.id for row in self.world.rows("SELECT id FROM batches")
                if event.subject == f"batch_{row.id.hex}"
            )  # fmt: skip
            splitter.split_segment(batch, int(str(event.data["segment"])))
