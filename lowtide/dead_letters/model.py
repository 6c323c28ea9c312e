"""Dead letters: requests that failed for good."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from lowtide.core.ids import BatchId, format_batch_id
from lowtide.core.pools import DEFAULT_FLEET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from lowtide.core.ids import TenantId


MAX_LETTERS: Final = 50_000
"""Max number of letters that one call requeues or discards."""
MAX_SOURCES: Final = 100
"""Max number of their batches: each costs a new file and batch, or a lock."""

MAX_GROUPED: Final = 10_000
"""Max number of letters that a summary counts, the newest ones."""
MAX_GROUPS: Final = 20
MESSAGE_LENGTH: Final = 200
"""Letters with the same error code and the same beginning of the message are one group."""

SOURCE_KEY: Final = "dead_letters_of"
"""The metadata key under which a batch of dead letters names its source batch."""
RERUN_KEY: Final = "rerun_of"
"""The metadata key under which a batch of failed requests names their batch."""
_MAX_METADATA = 16


class LetterState(StrEnum):
    """The states of a dead letter; only an open one can be requeued or discarded."""

    OPEN = "open"
    REQUEUED = "requeued"
    DISCARDED = "discarded"


class LetterId(NamedTuple):
    """The identity of a letter: its batch and line."""

    batch: BatchId
    line: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead-lettered request.

    `error_code` is `http_` and the status if the engine's last response was an HTTP error.
    `ended_at` and `actor` record its requeue or discard, `requeued_as` the new batch.
    """

    tenant: TenantId
    batch: BatchId
    line: int
    custom_id: str
    attempts: int
    status_code: int | None
    error_code: str | None
    error_message: str | None
    died_at: datetime
    state: LetterState
    ended_at: datetime | None
    actor: str | None
    requeued_as: BatchId | None


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """A filter for letters; None matches any.

    `error_message` is compared with the first MESSAGE_LENGTH characters of a letter's message.
    """

    batch: BatchId | None = None
    error_code: str | None = None
    state: LetterState | None = None
    error_message: str | None = None

    def __str__(self) -> str:
        """Format the filter for the audit log."""
        fields = {
            "batch_id": None if self.batch is None else format_batch_id(self.batch),
            "error_code": self.error_code,
            "error_message": self.error_message,
            "state": self.state,
        }
        return " ".join(f"{name}={value}" for name, value in fields.items() if value) or "all"


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """The letters with one error; `error_message` is its beginning."""

    error_code: str | None
    error_message: str | None
    letters: int


@dataclass(frozen=True, slots=True)
class LetterSummary:
    """The number of letters, and their most frequent errors; both stop at MAX_GROUPED letters."""

    total: int = 0
    groups: tuple[ErrorGroup, ...] = ()

    @property
    def is_capped(self) -> bool:
        """True if there may be more letters than were counted."""
        return self.total >= MAX_GROUPED


@dataclass(frozen=True, slots=True)
class LetterLocation:
    """The position of a letter in its batch's input file, and the size of its last response.

    `checksum` verifies the bytes; None for a request that was split before checksums were kept.
    """

    batch: BatchId
    line: int
    start: int
    length: int
    checksum: int | None = None
    answer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """The batch that letters come from; `has_input` is True while its input file exists.

    `fleet` ran it; None is several.
    """

    batch: BatchId
    user: str
    input_key: str
    has_input: bool
    endpoint: str
    completion_window: str
    metadata: Mapping[str, str] | None
    output_expires_after: int | None
    fleet: str | None = DEFAULT_FLEET
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Requeued:
    """The number of letters moved from a batch to a new one; `batch` is None if not created yet."""

    source: BatchId
    batch: BatchId | None
    letters: int


@dataclass(frozen=True, slots=True)
class Selection:
    """The letters that a call selects: open ones in order of batch and line, and counts of others.

    `requeued` and `discarded` were handled by earlier calls; `remaining` match the filter, but
    exceed the limits of one call.
    """

    open: tuple[LetterLocation, ...] = ()
    requeued: tuple[Requeued, ...] = ()
    discarded: int = 0
    remaining: int = 0

    @property
    def already_requeued(self) -> int:
        """The number of selected letters that were requeued before."""
        return sum(earlier.letters for earlier in self.requeued)


def by_batch(places: Iterable[LetterLocation]) -> dict[BatchId, list[LetterLocation]]:
    """Group letters by batch; batches and letters keep their order."""
    batches: dict[BatchId, list[LetterLocation]] = {}
    for place in places:
        batches.setdefault(place.batch, []).append(place)
    return batches


def of_few_sources(places: Iterable[LetterLocation], max_batches: int) -> list[LetterLocation]:
    """Return the letters of the first `max_batches` batches."""
    batches: set[BatchId] = set()
    letters = []
    for place in places:
        if place.batch in batches or len(batches) < max_batches:
            batches.add(place.batch)
            letters.append(place)
    return letters


def in_blocks(
    places: Iterable[LetterLocation], sizes: Iterable[int], max_bytes: int
) -> Iterator[list[LetterLocation]]:
    """Yield runs of letters of one batch, each of up to `max_bytes` bytes or of a single letter."""
    block: list[LetterLocation] = []
    block_bytes = 0
    for place, size in zip(places, sizes, strict=True):
        if block and (block_bytes + size > max_bytes or place.batch != block[0].batch):
            yield block
            block, block_bytes = [], 0
        block.append(place)
        block_bytes += size
    if block:
        yield block


def copy_metadata(source: Source, key: str) -> dict[str, str]:
    """Return the metadata of a batch of copies: its source's, and under `key` the source's id."""
    metadata = {
        name: value
        for name, value in (source.metadata or {}).items()
        if name not in (SOURCE_KEY, RERUN_KEY)
    }
    inherited = dict(list(metadata.items())[: _MAX_METADATA - 1])
    return inherited | {key: format_batch_id(source.batch)}


def requeue_filename(source: BatchId) -> str:
    """Return the name of the input file with a batch's dead letters."""
    return f"{format_batch_id(source)}_dead_letters.jsonl"
