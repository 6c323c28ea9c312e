"""File records, and estimates of an input file's tokens, time and cost."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.pools import Pool
from lowtide.objects.names import data_key_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lowtide.core.ids import FileId, TenantId
    from lowtide.core.pools import Prices
    from lowtide.files.index import FileSegment
    from lowtide.files.lines import ModelCounts
    from lowtide.telemetry.tracing import TraceContext


class Purpose(StrEnum):
    """The purpose of a file."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


class FileStatus(StrEnum):
    """The result of a file's checks; for `error`, status_details names the problems."""

    UPLOADED = "uploaded"
    PROCESSED = "processed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose bytes are in the object store under `object_key`.

    While it is only `uploaded`, not read yet, `lines` is an upper bound. `sha256` is None if the
    bytes bypassed our processes. `size` is in bytes; `endpoint` is the url of its first valid
    request, the default for batches, and `model` their model, None for those of several `models`;
    `trace` is the context of the work
    that created it. A file without an `index_key` is not indexed: it has problems, or its bytes were
    never validated here.
    """

    id: FileId
    tenant: TenantId
    purpose: Purpose
    filename: str
    size: int
    lines: int
    sha256: bytes | None
    object_key: str
    status: FileStatus
    status_details: str | None
    created_at: datetime
    endpoint: str | None = None
    expires_at: datetime | None = None
    trace: TraceContext | None = None
    model: str | None = None
    index_key: str | None = None
    segments: Sequence[FileSegment] | None = None
    models: ModelCounts | None = None

    @property
    def model_counts(self) -> ModelCounts | None:
        """The models of the requests, each with their number; None if the file was not read."""
        if self.index_key is None:
            return None
        return self.models or ((self.model, self.lines),)

    @property
    def e_tag(self) -> str:
        """The entity tag of the bytes, which never change."""
        return f'"{self.id.hex if self.sha256 is None else self.sha256.hex()}"'

    @property
    def estimated_tokens(self) -> int:
        """An estimate of its input tokens, see `estimate_tokens`."""
        return estimate_tokens(self.size)

    @property
    def zero_retention(self) -> bool:
        """True if the object is encrypted with a key that ends with the file, or its batch."""
        return data_key_of(self.object_key) is not None


def object_key(file: FileId) -> str:
    """Return the key of a file's object."""
    return f"files/{file.hex}"


BYTES_A_TOKEN: Final = 4
"""English text has about four bytes per token in today's vocabularies; JSON around it has fewer."""


def estimate_tokens(size: int) -> int:
    """Return the input tokens of `size` bytes of requests, as if every byte were prompt.

    Tokens are overestimated if requests have little text.
    """
    return -(-size // BYTES_A_TOKEN)


@dataclass(frozen=True, slots=True)
class FileEstimate:
    """A rough estimate: input tokens, replica time, and its cost in either pool.

    Output tokens are not estimated, as their number depends on the model.
    """

    input_tokens: int
    replica_seconds: float
    spot: float
    dedicated: float
    currency: str


@dataclass(frozen=True, slots=True)
class FilePart:
    """Requests of a file that run at `rate` requests per second of one replica, at these prices."""

    lines: int
    rate: float
    prices: Prices

    @property
    def replica_seconds(self) -> float:
        """The time of one replica that the requests take."""
        return self.lines / self.rate


def estimate_file(size: int, parts: Sequence[FilePart]) -> FileEstimate:
    """Estimate a file of `size` bytes; its parts, at least one, have prices in one currency.

    >>> from lowtide.core.pools import Prices
    >>> estimate_file(4000, [FilePart(7200, 2.0, Prices(1.0, 3.0, "USD"))]).dedicated
    3.0
    """
    return FileEstimate(
        input_tokens=estimate_tokens(size),
        replica_seconds=sum(part.replica_seconds for part in parts),
        spot=sum(part.prices.of_second(Pool.SPOT) * part.replica_seconds for part in parts),
        dedicated=sum(
            part.prices.of_second(Pool.DEDICATED) * part.replica_seconds for part in parts
        ),
        currency=parts[0].prices.currency,
    )
