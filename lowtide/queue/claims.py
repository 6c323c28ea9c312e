"""Claims: requests under a lease, and how they end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from lowtide.files.lines import checksum_of

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.engines.outcomes import Usage
    from lowtide.events.model import Event
    from lowtide.objects.names import DataKeyId
    from lowtide.telemetry.tracing import TraceContext


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A request under a lease. `start` and `length` locate it in the input object.

    `checksum` verifies its bytes; a request split before checksums were kept has none. `waited` is
    the seconds since it was first queued, `due_in` those until its deadline; `trace` is the context
    that the batch's work continues, `model` the model of all the batch's requests. A `mixed` batch
    has several, or none: claims cannot leave out some of its requests, and each has the model of its
    own body once that is loaded. With a `data_key` no text of it may be written in plain.
    """

    batch: BatchId
    endpoint: str
    input_key: str
    line: int
    start: int
    length: int
    attempts: int
    interruptions: int
    waited: float = 0.0
    checksum: int | None = None
    tenant: TenantId | None = None
    trace: TraceContext | None = None
    due_in: float = math.inf
    model: str | None = None
    data_key: DataKeyId | None = None
    mixed: bool = False

    def proves(self, line: bytes) -> bool:
        """Return whether the bytes match the upload, as far as is known."""
        return self.checksum is None or self.checksum == checksum_of(line)

    @property
    def is_first(self) -> bool:
        """True until the request's first attempt or interruption."""
        return not self.attempts and not self.interruptions


class Finished(msgspec.Struct, frozen=True, gc=False):
    """A request that ended for good, in success or failure.

    `body` is the answer in UTF-8; `attempts` counts every attempt; `dead_letter` dead-letters a
    failure; `replica_seconds` is the request's share of its worker's time. With a `data_key`, body
    and message are to be encrypted before they are stored.
    """

    batch: BatchId
    line: int
    succeeded: bool
    attempts: int
    usage: Usage
    status_code: int | None = None
    request_id: str = ""
    body: bytes | None = None
    error_code: str | None = None
    error_message: str | None = None
    dead_letter: bool = False
    replica_seconds: float = 0.0
    data_key: DataKeyId | None = None


class Returned(msgspec.Struct, frozen=True, gc=False):
    """A request that is released, and available again after `delay` seconds.

    `failed` counts an attempt; `interrupted` records a spot interruption; neither applies to a
    request that was never started or met a fault of the engine. With a `data_key`, the reason is to
    be encrypted before it is stored.
    """

    batch: BatchId
    line: int
    reason: str
    delay: float = 0.0
    failed: bool = False
    interrupted: bool = False
    data_key: DataKeyId | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """The result of a settlement; requests missing from the counts were no longer this lease's.

    `completed` of the finished succeeded, `in_time` ended before their deadline. `drained` holds the
    events, already in the outbox, of batches whose last request this ended.
    """

    finished: int
    completed: int
    in_time: int
    returned: int
    drained: tuple[Event, ...]
