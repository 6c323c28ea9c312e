"""Searching, downloading and discarding dead letters."""

from __future__ import annotations

from codecs import iterdecode
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from msgspec import structs

from lowtide.batches.answers import AnswerReader, AnswersGone
from lowtide.batches.results import encode_escaped, render_all
from lowtide.batches.sealed_answers import NO_ANSWERS, is_sealed_text
from lowtide.core.errors import Conflict, InvalidRequest, NotFound
from lowtide.core.ids import format_batch_id
from lowtide.dead_letters.model import MAX_SOURCES, LetterFilter, in_blocks, of_few_sources
from lowtide.files.lines import NO_BYTES, checksum_of
from lowtide.objects.names import KeyDestroyed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lowtide.batches.results import FinishedLine
    from lowtide.batches.sealed_answers import Answers
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.dead_letters.model import (
        DeadLetter,
        LetterId,
        LetterLocation,
        LetterSummary,
        Selection,
        Source,
    )
    from lowtide.dead_letters.requeue_store import RequeueStore
    from lowtide.dead_letters.store import DeadLetterStore
    from lowtide.objects.store import ObjectStore


# Max size of an input or of responses in memory; longer ones are streamed in pieces.
_BLOCK_BYTES = 4 << 20


class Content(StrEnum):
    """The content of a download: lines to run again, or the last responses as in the error file."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class ShownLetter:
    """A letter with its line, None if the input file is gone, and its last response.

    `line` and `body` yield pieces, once; `line_bytes` and `body_bytes` are their sizes. The response
    of an `is_erased` letter was deleted with the batch's error file.
    """

    letter: DeadLetter
    line: Iterator[bytes] | None
    line_bytes: int
    answer: FinishedLine
    body: Iterator[bytes] | None
    body_bytes: int
    is_erased: bool = False


@dataclass(frozen=True, slots=True)
class Discarded:
    """The numbers of letters discarded now, ended before, and left for another call."""

    changed: int
    unchanged: int
    remaining: int


class DeadLetters:
    """The dead letters of tenants; one call discards at most `max_letters`."""

    def __init__(
        self,
        letters: DeadLetterStore,
        requeues: RequeueStore,
        objects: ObjectStore,
        *,
        max_letters: int,
        answers: Answers = NO_ANSWERS,
    ) -> None:
        self._answers = answers
        self._letters = letters
        self._requeues = requeues
        self._objects = objects
        self._reader = AnswerReader(objects)
        self._max_letters = max_letters

    def page(
        self,
        tenant: TenantId | None,
        letter_filter: LetterFilter,
        *,
        after: LetterId | None,
        limit: int,
    ) -> tuple[Sequence[DeadLetter], bool]:
        """Return up to `limit` letters that follow `after`, newest first, and whether more follow.

        A tenant of None is all that the database role may read. Raises NotFound for an unknown `after`.
        """
        letters = self._letters.page(tenant, letter_filter, after=after, limit=limit + 1)
        return [self._opened(letter) for letter in letters[:limit]], len(letters) > limit

    def summary(self, tenant: TenantId | None, letter_filter: LetterFilter) -> LetterSummary:
        """Return the number of matching letters and their most frequent errors."""
        return self._letters.summary(tenant, letter_filter)

    def get(self, tenant: TenantId, letter: LetterId) -> ShownLetter:
        """Return a letter with its input and its last response; raises NotFound."""
        record, place = self._letters.get(tenant, letter)
        (answer,) = self._letters.answers(tenant, letter.batch, [letter.line])
        source = self._letters.sources(tenant, [letter.batch])[letter.batch]
        pieces = _line_in_pieces(self._objects, source, place)
        line: Iterator[bytes] | None
        try:
            line = chain([next(pieces)], pieces)
        except (NotFound, Conflict):
            line = None
        is_erased = False
        body: Iterator[bytes] | None
        try:
            body, size = self._body(tenant, place, answer) or (None, 0)
        except (AnswersGone, KeyDestroyed):
            body, size, is_erased = None, 0, True
        message = self._answers.message(tenant, letter.batch, letter.line, answer.error_message)
        answer = structs.replace(answer, error_message=message)
        record = self._opened(record)
        return ShownLetter(record, line, place.length, answer, body, size, is_erased=is_erased)

    def _body(
        self, tenant: TenantId, letter: LetterLocation, answer: FinishedLine
    ) -> tuple[Iterator[bytes], int] | None:
        """Return the body of a last response and its size; None if there was no response."""
        files = self._letters.answer_files(tenant, letter.batch)
        if files is not None:
            files.require_role("error")
        if files is not None and files.segments:
            (place,) = self._reader.places(files, [letter.line])
            return self._reader.body(files, place)
        if answer.is_long:
            pieces = self._stored_body(tenant, letter.batch, letter.line)
            return map(str.encode, pieces), letter.answer_bytes
        if answer.body is None:
            return None
        body = self._answers.text(tenant, letter.batch, letter.line, answer.body).encode()
        return iter([body]), len(body)

    def _stored_body(self, tenant: TenantId, batch: BatchId, line: int) -> Iterator[str]:
        pieces = self._letters.body(tenant, batch, line)
        return self._answers.pieces(tenant, batch, line, pieces)

    def _stored_answers(
        self, tenant: TenantId, batch: BatchId, lines: Sequence[int]
    ) -> Sequence[FinishedLine]:
        answers = self._letters.answers(tenant, batch, lines)
        return [self._answers.line(tenant, batch, answer) for answer in answers]

    def download(
        self, tenant: TenantId, letter_filter: LetterFilter, content: Content, *, actor: str
    ) -> Iterator[bytes]:
        """Stream letters in order of batch and line, and record the download in the audit log.

        Raises Conflict if an input file is gone, AnswersGone if an error file is,
        or KeyDestroyed.
        """
        if content is Content.INPUT:
            missing = self._letters.without_input(tenant, letter_filter)
            if missing:
                raise input_gone(missing)
        self._letters.note_download(tenant, actor, f"{content}: {letter_filter}")
        return (self._inputs if content is Content.INPUT else self._outputs)(tenant, letter_filter)

    def discard(
        self,
        tenant: TenantId,
        selector: Sequence[LetterId] | LetterFilter,
        *,
        actor: str,
        dry_run: bool = False,
    ) -> Discarded:
        """Discard open letters; discarding them again changes nothing.

        Raises NotFound for an unknown letter, InvalidRequest for too many.
        """
        selection = select(self._requeues, tenant, selector, max_letters=self._max_letters)
        unchanged = selection.already_requeued + selection.discarded
        count = len(selection.open)
        if dry_run or not count:
            return Discarded(count, unchanged, selection.remaining)
        changed = self._requeues.discard(tenant, selection.open, actor=actor)
        return Discarded(changed, unchanged + count - changed, selection.remaining)

    def _inputs(self, tenant: TenantId, letter_filter: LetterFilter) -> Iterator[bytes]:
        for page in self._letters.places(tenant, letter_filter):
            sources = self._letters.sources(tenant, list({place.batch for place in page}))
            for batch, places in groupby(page, key=attrgetter("batch")):
                yield from input_blocks(self._objects, sources[batch], places)

    def _outputs(self, tenant: TenantId, letter_filter: LetterFilter) -> Iterator[bytes]:
        for page in self._letters.places(tenant, letter_filter):
            for batch, places in groupby(page, key=attrgetter("batch")):
                yield from self._outputs_of(tenant, batch, list(places))

    def _outputs_of(
        self, tenant: TenantId, batch: BatchId, letters: Sequence[LetterLocation]
    ) -> Iterator[bytes]:
        files = self._letters.answer_files(tenant, batch)
        if files is not None:
            files.require_role("error")
        if files is not None and files.segments:
            places = self._reader.places(files, [letter.line for letter in letters])
            sizes = dict(zip(letters, places, strict=True))
            for block in in_blocks(letters, (place.length for place in places), _BLOCK_BYTES):
                yield from self._reader.blocks(files, [sizes[letter] for letter in block])
            return
        for block in in_blocks(letters, (letter.answer_bytes for letter in letters), _BLOCK_BYTES):
            answers = self._stored_answers(tenant, batch, [letter.line for letter in block])
            yield from render_all(batch, answers, partial(self._stored_body, tenant, batch))

    def _opened(self, letter: DeadLetter) -> DeadLetter:
        if not is_sealed_text(letter.error_message):
            return letter
        message = self._answers.message(
            letter.tenant, letter.batch, letter.line, letter.error_message
        )
        return replace(letter, error_message=message)


def select(
    requeues: RequeueStore,
    tenant: TenantId,
    selector: Sequence[LetterId] | LetterFilter,
    *,
    max_letters: int,
) -> Selection:
    """Select the letters of a call.

    A filter selects up to `max_letters`, of up to MAX_SOURCES batches. Raises NotFound for an
    unknown letter, InvalidRequest for too many ids.
    """
    if isinstance(selector, LetterFilter):
        selection = requeues.matching(tenant, selector, limit=max_letters)
        places = of_few_sources(selection.open, MAX_SOURCES)
        excess = len(selection.open) - len(places)
        return replace(selection, open=tuple(places), remaining=selection.remaining + excess)
    letters = sorted(set(selector))
    sources = len({letter.batch for letter in letters})
    if len(letters) > max_letters or sources > MAX_SOURCES:
        raise InvalidRequest(
            f"ids has {len(letters)} dead letters of {sources} batches; at most {max_letters} of "
            f"{MAX_SOURCES} batches are allowed: split them into several calls.",
            param="ids",
        )
    return requeues.named(tenant, letters)


def input_blocks(
    objects: ObjectStore, source: Source, places: Iterable[LetterLocation]
) -> Iterator[bytes]:
    """Yield requests of one batch as lines of a file, escaped so that any reader splits them alike.

    Short lines are joined, a long one is split into pieces. Raises Conflict if the input is gone or
    differs from the upload; the earlier pieces of a long line have been yielded by then.
    """
    letters = list(places)
    try:
        for block in in_blocks(letters, (place.length for place in letters), _BLOCK_BYTES):
            if sum(place.length for place in block) > _BLOCK_BYTES:
                for place in block:
                    pieces = iterdecode(
                        _verified(place, _line_in_pieces(objects, source, place)), "utf-8"
                    )
                    yield from map(encode_escaped, pieces)
                    yield b"\n"
                continue
            ranges = [(place.start, place.length) for place in block]
            lines = objects.read_ranges(source.input_key, ranges)
            verified = (
                piece
                for place, line in zip(block, lines, strict=True)
                for piece in _verified(place, [line])
            )
            yield b"".join(
                (line if line.isascii() else encode_escaped(line.decode())) + b"\n"
                for line in verified
            )
    except NotFound as error:
        raise input_gone([source.batch]) from error
    except UnicodeDecodeError as error:  # the upload's checks reject such bytes
        raise _input_corrupt(source.batch) from error


def _verified(place: LetterLocation, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of a line; at the end raises Conflict if length or checksum differ."""
    length, checksum = 0, NO_BYTES
    for piece in pieces:
        length += len(piece)
        checksum = checksum_of(piece, checksum)
        yield piece
    if length != place.length or place.checksum not in (None, checksum):
        raise _input_corrupt(place.batch)


def _input_corrupt(batch: BatchId) -> Conflict:
    return Conflict(
        f"The input file of {format_batch_id(batch)} differs from the upload: its object was changed "
        "or damaged. Restore the object, or upload these requests again.",
        param="batch_id",
        code="input_corrupt",
    )


def _line_in_pieces(objects: ObjectStore, source: Source, place: LetterLocation) -> Iterator[bytes]:
    """Yield the bytes of a line; raises NotFound if its input is gone, Conflict if truncated."""
    remaining = place.length
    for piece in objects.stream(source.input_key, place.start, place.start + place.length):
        remaining -= len(piece)
        yield piece
    if remaining:
        raise _input_corrupt(place.batch)


def input_gone(batches: Sequence[BatchId]) -> Conflict:
    """Return the error for requests whose input file is gone."""
    names = ", ".join(format_batch_id(batch) for batch in batches)
    return Conflict(
        f"The input file of {names} was deleted or has expired, and with it the inputs of these "
        "requests: exclude them, or upload them again.",
        param="batch_id",
        code="input_file_gone",
    )
