"""File records, and estimates of what an input file will take."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.pools import cost_of

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.core.ids import FileId, TenantId
    from lowtide.core.pools import Prices
    from lowtide.telemetry.tracing import TraceContext


class Purpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


class FileStatus(StrEnum):
    """Whether a file's lines passed the checks; `error` names the problems in status_details."""

    UPLOADED = "uploaded"
    PROCESSED = "processed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose bytes are in the object store under `object_key`.

    `size` is in bytes; `endpoint` is the url of its first good line, for callers who name
    none; `trace` is the work that made it.
    """

    id: FileId
    tenant: TenantId
    purpose: Purpose
    filename: str
    size: int
    lines: int
    sha256: bytes
    object_key: str
    status: FileStatus
    status_details: str | None
    created_at: datetime
    endpoint: str | None = None
    expires_at: datetime | None = None
    trace: TraceContext | None = None


def object_key(file: FileId) -> str:
    """Return where a file's bytes live in the object store."""
    return f"files/{file.hex}"


BYTES_A_TOKEN: Final = 4
"""English text has about four bytes a token in today's vocabularies; JSON around it has fewer."""


@dataclass(frozen=True, slots=True)
class FileEstimate:
    """A rough guess: tokens that are read, replica time, and what that costs in either pool.

    Answers are not counted in tokens: how long they get, only the model knows.
    """

    input_tokens: int
    replica_seconds: float
    spot: float
    dedicated: float
    currency: str


def estimate_file(size: int, lines: int, rate: float, prices: Prices) -> FileEstimate:
    """Return the estimate of a file of `size` bytes, at `rate` lines a second of one replica.

    Every byte is taken for prompt, so that tokens come out high where a line has little text.

        >>> from lowtide.domain.pricing import Prices
        >>> estimate_file(4000, 7200, 2.0, Prices(1.0, 3.0, "USD")).dedicated
        3.0
    """
    seconds = lines / rate
    return FileEstimate(
        input_tokens=-(-size // BYTES_A_TOKEN),
        replica_seconds=seconds,
        spot=cost_of(seconds, 0.0, prices).total,
        dedicated=cost_of(0.0, seconds, prices).total,
        currency=prices.currency,
    )
