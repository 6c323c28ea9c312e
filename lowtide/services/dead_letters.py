"""Looking at dead letters, downloading and discarding them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from lowtide.domain.dead_letters import MOST_SOURCES, LetterFilter, in_blocks, of_few_sources
from lowtide.domain.errors import Conflict, InvalidRequest, NotFound
from lowtide.domain.ids import format_batch_id
from lowtide.domain.outputs import escape_separators, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lowtide.domain.dead_letters import DeadLetter, LetterId, LetterPlace, Selection, Source
    from lowtide.domain.ids import BatchId, TenantId
    from lowtide.domain.outputs import FinishedLine
    from lowtide.ports import DeadLetterCatalog, DeadLetterDesk, ObjectStore

BLOCK_BYTES = 4 << 20
"""How much of an input or of answers is held at a time, in bytes; a longer line is held alone."""


class Content(StrEnum):
    """What is downloaded: lines to run again, or the last answers as in the error file."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class ShownLetter:
    """A letter with its line, None when the input file is gone, and its last answer."""

    letter: DeadLetter
    line: bytes | None
    answer: FinishedLine


@dataclass(frozen=True, slots=True)
class Discarded:
    """How many letters a call discarded, found dealt with before, and left for another call."""

    changed: int
    unchanged: int
    remaining: int


class DeadLetters:
    """The dead letters of tenants; one call discards at most `most`."""

    def __init__(
        self, catalog: DeadLetterCatalog, desk: DeadLetterDesk, objects: ObjectStore, *, most: int
    ) -> None:
        self._catalog = catalog
        self._desk = desk
        self._objects = objects
        self._most = most

    def page(
        self, tenant: TenantId, wanted: LetterFilter, *, after: LetterId | None, limit: int
    ) -> tuple[Sequence[DeadLetter], bool]:
        """Return up to `limit` letters behind `after`, newest first, and whether there are more.

        Raises NotFound for an unknown `after`.
        """
        found = self._catalog.page(tenant, wanted, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    def get(self, tenant: TenantId, letter: LetterId) -> ShownLetter:
        """Return a letter with its input and its last answer; raises NotFound."""
        found, place = self._catalog.get(tenant, letter)
        (answer,) = self._catalog.answers(tenant, letter.batch, [letter.line])
        source = self._catalog.sources(tenant, [letter.batch])[letter.batch]
        try:
            (line,) = read_lines(self._objects, source, [place])
        except NotFound:
            return ShownLetter(found, None, answer)
        return ShownLetter(found, line, answer)

    def download(
        self, tenant: TenantId, wanted: LetterFilter, content: Content, *, actor: str
    ) -> Iterator[bytes]:
        """Yield the lines of letters, in order of batch and line, and tell the audit log.

        Raises Conflict when an input file is gone.
        """
        if content is Content.INPUT:
            gone = self._catalog.without_input(tenant, wanted)
            if gone:
                raise input_gone(gone)
        self._catalog.note_download(tenant, actor, f"{content}: {wanted}")
        return (self._inputs if content is Content.INPUT else self._outputs)(tenant, wanted)

    def discard(
        self,
        tenant: TenantId,
        wanted: Sequence[LetterId] | LetterFilter,
        *,
        actor: str,
        dry_run: bool = False,
    ) -> Discarded:
        """Give up on open letters; discarding them again changes nothing.

        Raises NotFound for an unknown letter, InvalidRequest for too many.
        """
        selection = select(self._desk, tenant, wanted, most=self._most)
        ended = selection.already_requeued + selection.discarded
        count = len(selection.open)
        if dry_run or not count:
            return Discarded(count, ended, selection.remaining)
        changed = self._desk.discard(tenant, selection.open, actor=actor)
        return Discarded(changed, ended + count - changed, selection.remaining)

    def _inputs(self, tenant: TenantId, wanted: LetterFilter) -> Iterator[bytes]:
        for page in self._catalog.places(tenant, wanted):
            sources = self._catalog.sources(tenant, list({place.batch for place in page}))
            for block in in_blocks(page, (place.length for place in page), BLOCK_BYTES):
                batch = block[0].batch
                try:
                    lines = read_lines(self._objects, sources[batch], block)
                except NotFound as error:
                    raise input_gone([batch]) from error
                yield joined(lines)

    def _outputs(self, tenant: TenantId, wanted: LetterFilter) -> Iterator[bytes]:
        for page in self._catalog.places(tenant, wanted):
            for block in in_blocks(page, (place.answer_bytes for place in page), BLOCK_BYTES):
                batch = block[0].batch
                answers = self._catalog.answers(tenant, batch, [place.line for place in block])
                yield b"".join(render(batch, answer) for answer in answers)


def select(
    desk: DeadLetterDesk,
    tenant: TenantId,
    wanted: Sequence[LetterId] | LetterFilter,
    *,
    most: int,
) -> Selection:
    """Return the letters a call is about, of a filter up to `most` and of some batches.

    Raises NotFound for an unknown letter, InvalidRequest for too many ids.
    """
    if isinstance(wanted, LetterFilter):
        found = desk.matching(tenant, wanted, most=most)
        kept = of_few_sources(found.open, MOST_SOURCES)
        left = len(found.open) - len(kept)
        return replace(found, open=tuple(kept), remaining=found.remaining + left)
    letters = sorted(set(wanted))
    sources = len({letter.batch for letter in letters})
    if len(letters) > most or sources > MOST_SOURCES:
        raise InvalidRequest(
            f"ids names {len(letters)} dead letters of {sources} batches; at most {most} of "
            f"{MOST_SOURCES} are allowed: make several calls.",
            param="ids",
        )
    return desk.named(tenant, letters)


def read_lines(
    objects: ObjectStore, source: Source, places: Iterable[LetterPlace]
) -> Sequence[bytes]:
    """Return the exact bytes of lines of one batch; raises NotFound when its input is gone."""
    return objects.read_ranges(source.input_key, [(place.start, place.length) for place in places])


def joined(lines: Iterable[bytes]) -> bytes:
    """Return lines as a file has them, each with its newline; any reader sees one line for each."""
    return b"".join(
        (line if line.isascii() else escape_separators(line.decode()).encode()) + b"\n"
        for line in lines
    )


def input_gone(batches: Sequence[BatchId]) -> Conflict:
    """Return the error for letters whose input cannot be read any more."""
    named = ", ".join(format_batch_id(batch) for batch in batches)
    return Conflict(
        f"The input file of {named} was deleted or has expired, and with it the lines of its dead "
        "letters: leave them out, or discard them.",
        param="batch_id",
        code="input_file_gone",
    )
