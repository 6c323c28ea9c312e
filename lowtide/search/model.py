"""Search texts, their lookups and their matches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from lowtide.core.errors import InvalidRequest

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.batches.model import BatchStatus
    from lowtide.core.ids import BatchId


MIN_LENGTH: Final = 2
MAX_LENGTH: Final = 512
"""Max length of a custom_id and of a metadata value."""
MAX_MATCHES: Final = 20
"""Max matches of a kind."""

_HEXADECIMAL: Final = frozenset("0123456789abcdef")
_ID_DIGITS: Final = 32
_LINE_DIGITS: Final = 8
_MAX_LINE: Final = 2**31 - 1
_MAX_CHARACTER: Final = 0x10FFFF
_SURROGATES: Final = (0xD800, 0xDFFF)


class Kind(StrEnum):
    """The kinds of things that a search finds."""

    BATCH = "batch"
    FILE = "file"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class IdRange:
    """The ids that start with some digits: from `first` to `last`, both included."""

    first: UUID
    last: UUID

    @property
    def is_exact(self) -> bool:
        """True for a whole id."""
        return self.first == self.last


@dataclass(frozen=True, slots=True)
class RequestRange:
    """The requests whose ids start with some digits: lines from `first` to `last` of batches."""

    batches: IdRange
    first: int
    last: int

    @property
    def is_exact(self) -> bool:
        """True for a whole id."""
        return self.batches.is_exact and self.first == self.last


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """The lookups of a search text.

    The texts that `text` is a prefix of lie from `text` up to `beyond`, which is excluded, in the
    order of their bytes. A range of ids is None if the text is no part of such an id.
    """

    text: str
    beyond: str
    batches: IdRange | None = None
    files: IdRange | None = None
    requests: RequestRange | None = None


@dataclass(frozen=True, slots=True)
class MatchedBatch:
    """The batch of a match."""

    id: BatchId
    user: str
    status: BatchStatus
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Match:
    """A batch, file or request, and the `field` whose `value` matched.

    The field is `id`, `custom_id`, `user` or `metadata.` and a key. `name` is the filename of a
    file and the custom_id of a request; `line` is that of a request. The batch of a file is the
    newest that reads it or wrote it. `tenant_name` is None in a search of one tenant.
    """

    kind: Kind
    id: str
    field: str
    value: str
    is_exact: bool
    batch: MatchedBatch | None
    name: str | None = None
    line: int | None = None
    tenant_name: str | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The matches in order of kind, exact ones first; there are more of the kinds in `more`."""

    matches: tuple[Match, ...]
    more: frozenset[Kind] = frozenset()

    @property
    def only_exact(self) -> Match | None:
        """The exact match, if there is exactly one."""
        exact = [match for match in self.matches if match.is_exact]
        return exact[0] if len(exact) == 1 else None


def parse_query(text: str) -> SearchQuery:
    """Return the lookups of a text; raises InvalidRequest if it is too short or too long."""
    text = text.strip()
    if not MIN_LENGTH <= len(text) <= MAX_LENGTH or "\x00" in text:
        raise InvalidRequest(
            f"Search for {MIN_LENGTH} to {MAX_LENGTH} characters: an id, a custom_id, a user or a "
            "metadata value, or the start of one.",
            param="q",
        )
    batches = files = requests = None
    if text.startswith("batch_req_"):
        requests = _requests(text.removeprefix("batch_req_"))
    elif text.startswith("batch_"):
        batches = _ids(text.removeprefix("batch_"))
    elif text.startswith("file-"):
        files = _ids(text.removeprefix("file-"))
    else:
        # Without its prefix; with hyphens as PostgreSQL shows it.
        digits = text.replace("-", "")
        batches = files = _ids(digits)
        if len(digits) > _ID_DIGITS:
            requests = _requests(digits)
    return SearchQuery(text, after_prefix(text), batches, files, requests)


def after_prefix(prefix: str) -> str:
    """Return the first text, in the order of bytes, after all those that start with `prefix`."""
    for index in range(len(prefix) - 1, -1, -1):
        following = ord(prefix[index]) + 1
        if following == _SURROGATES[0]:
            following = _SURROGATES[1] + 1
        if following <= _MAX_CHARACTER:
            return prefix[:index] + chr(following)
    # No such text exists: U+10FFFF is no character, so that nothing continues with it.
    return prefix + chr(_MAX_CHARACTER)


def _ids(digits: str) -> IdRange | None:
    if not 0 < len(digits) <= _ID_DIGITS or not set(digits) <= _HEXADECIMAL:
        return None
    first, last = (UUID(hex=digits.ljust(_ID_DIGITS, fill)) for fill in "0f")
    return IdRange(first, last)


def _requests(digits: str) -> RequestRange | None:
    batches, line = _ids(digits[:_ID_DIGITS]), digits[_ID_DIGITS:]
    if batches is None or len(line) > _LINE_DIGITS or not set(line) <= _HEXADECIMAL:
        return None
    first, last = (int(line.ljust(_LINE_DIGITS, fill), 16) for fill in "0f")
    # A line is a PostgreSQL integer.
    return None if first > _MAX_LINE else RequestRange(batches, first, min(last, _MAX_LINE))
