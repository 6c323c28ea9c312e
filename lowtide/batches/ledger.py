"""The ledger of a cell in its bucket: its unfinished batches, and which cell ends each.

Below `cells/` in the bucket of a cell are:

| object | holds |
|---|---|
| `cells/cell.json` | the number of the cell |
| `cells/open/<batch>.json` | a `Record`: all that another cell needs to create an unfinished batch again |
| `cells/ended/<batch>.json` | a `Fence`: the cell that ends the batch |

A record is written before its batch is acknowledged, and deleted once the batch has ended. A fence
is created, never replaced by another cell: the store creates it only if it is absent, so that of
two cells that want to end a batch exactly one may. A cell creates it before an end becomes visible,
an evacuation before it creates the batch in another cell, and the latter then reads the record
again: if that is gone, the batch ended before, and its fence was removed.
"""

from __future__ import annotations

import re
from datetime import datetime  # noqa: TC003 - msgspec reads it at run time
from typing import TYPE_CHECKING, Final
from uuid import UUID  # noqa: TC003 - msgspec reads it at run time

import msgspec

from lowtide.core.ids import BatchId, format_batch_id, parse_batch_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.objects.store import ObstoreObjects


_CELL: Final = "cells/cell.json"
_OPEN: Final = "cells/open"
_ENDED: Final = "cells/ended"
_NAME: Final = re.compile(r"/([^/]+)\.json$")


class RecordedFile(msgspec.Struct, frozen=True, kw_only=True):
    """The record of an input file, as in `lowtide.files.model.StoredFile`."""

    filename: str
    size: int
    lines: int
    sha256: bytes | None
    object_key: str
    status: str
    status_details: str | None
    created_at: datetime
    endpoint: str | None
    expires_at: datetime | None
    model: str | None
    models: list[tuple[str | None, int]] | None
    index_key: str | None
    segments: list[tuple[int, int, int]] | None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An unfinished batch, as in `lowtide.batches.model.NewBatch`.

    `file` is None if it was deleted, or is to be imported. `recorded_at` is the time of the cell's
    database: of two records with the same idempotency key, the batch of the older one was never
    committed.
    """

    cell: int
    batch: UUID
    tenant: UUID
    tenant_name: str
    user: str
    input_file: UUID
    input_key: str
    endpoint: str
    completion_window: str
    created_at: datetime
    deadline: datetime
    recorded_at: datetime
    metadata: dict[str, str] | None = None
    idempotency_key: str | None = None
    idempotency_digest: bytes | None = None
    output_expires_after: int | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    pool: str = "spot"
    input_url: str | None = None
    output_url: str | None = None
    zero_retention: bool = False
    priority: int = 0
    tokens: int = 0
    is_cancelling: bool = False
    file: RecordedFile | None = None


class Fence(msgspec.Struct, frozen=True):
    """The cell that ends a batch; `is_moved` once an evacuation has created the batch there."""

    cell: int
    is_moved: bool = False


class _Cell(msgspec.Struct, frozen=True):
    cell: int


class Listed(msgspec.Struct, frozen=True):
    """A batch with a record or a fence, and when that was written by the clock of the store."""

    batch: BatchId
    at: datetime


_encode = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_fence = msgspec.json.Decoder(Fence).decode
_decode_cell = msgspec.json.Decoder(_Cell).decode


class Ledger:
    """The ledger in a bucket, used by the cell `cell`: its own one, or that of a cell it takes over."""

    def __init__(self, objects: ObstoreObjects, cell: int) -> None:
        self._objects = objects
        self.cell = cell

    def owner(self) -> int | None:
        """Return the number of the cell whose bucket this is; None if there is no ledger."""
        data = self._objects.read(_CELL)
        return None if data is None else _decode_cell(data).cell

    def found(self) -> int:
        """Start the ledger of this cell, unless it exists; return the cell whose bucket this is."""
        if self._objects.create(_CELL, _encode(_Cell(self.cell))):
            return self.cell
        return self.owner() or self.cell

    def put(self, record: Record) -> None:
        """Write the record of a batch, in place of an older one."""
        self._objects.put(_key(_OPEN, BatchId(record.batch)), _encode(record))

    def record(self, batch: BatchId) -> Record | None:
        """Return the record of a batch; None if there is none."""
        data = self._objects.read(_key(_OPEN, batch))
        return None if data is None else _decode_record(data)

    def records(self) -> Iterator[Listed]:
        """Yield the batches with a record."""
        return self._listed(_OPEN)

    def forget_record(self, batch: BatchId) -> None:
        """Delete the record of a batch."""
        self._objects.delete([_key(_OPEN, batch)])

    def fence(self, batch: BatchId) -> Fence | None:
        """Return the fence of a batch; None if no cell ends it yet."""
        data = self._objects.read(_key(_ENDED, batch))
        return None if data is None else _decode_fence(data)

    def fences(self) -> Iterator[Listed]:
        """Yield the batches with a fence."""
        return self._listed(_ENDED)

    def claim(self, batch: BatchId) -> Fence:
        """Create the fence of a batch for this cell; return it, or the one that exists."""
        mine = Fence(self.cell)
        while not self._objects.create(_key(_ENDED, batch), _encode(mine)):
            fence = self.fence(batch)
            if fence is not None:
                return fence
        return mine

    def copy_fence(self, batch: BatchId, fence: Fence) -> Fence:
        """Create a copy of another bucket's fence; return it, or the one that exists."""
        if self._objects.create(_key(_ENDED, batch), _encode(fence)):
            return fence
        existing = self.fence(batch)
        if existing is not None and existing.cell == fence.cell and fence.is_moved:
            self._objects.put(_key(_ENDED, batch), _encode(fence))
            return fence
        return existing or fence

    def note_moved(self, batch: BatchId) -> None:
        """Record in the fence of this cell that the batch has been created in it."""
        self._objects.put(_key(_ENDED, batch), _encode(Fence(self.cell, is_moved=True)))

    def forget_fence(self, batch: BatchId) -> None:
        """Delete the fence of a batch."""
        self._objects.delete([_key(_ENDED, batch)])

    def _listed(self, folder: str) -> Iterator[Listed]:
        for each in self._objects.objects_in(folder):
            name = _NAME.search(each.key)
            batch = None if name is None else parse_batch_id(name[1])
            if batch is not None:
                yield Listed(batch, each.at)


def _key(folder: str, batch: BatchId) -> str:
    return f"{folder}/{format_batch_id(batch)}.json"
