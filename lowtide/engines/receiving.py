"""Receiving an upstream's replies: content codings, and large answers within a byte budget."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from lowtide.engines.outcomes import NoAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.engines.flow import ByteBudget


_PIECE: Final = 256 * 1024
_GZIP, _ZLIB, _DEFLATE = 31, 15, -15
_WINDOWS: Final = {
    "gzip": (_GZIP,),
    "x-gzip": (_GZIP,),
    # With the zlib wrapper, per RFC 9110, or without, as some servers send it.
    "deflate": (_ZLIB, _DEFLATE),
}


class BrokenReplyError(Exception):
    """An HTTP reply that is incomplete, malformed or too large; `code` is the error code."""

    def __init__(self, message: str, code: NoAnswer = NoAnswer.GARBAGE) -> None:
        super().__init__(message)
        self.code = code


class Decoder:
    """Decodes one body into at most `max_bytes`; raises BrokenReplyError."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        if coding not in _WINDOWS:
            raise BrokenReplyError(f"unexpected content coding {coding[:100]!r}")
        self._coding = coding
        self._windows = list(_WINDOWS[coding])
        self._max_bytes = max_bytes
        self._size = 0
        self._member = zlib.decompressobj(self._windows.pop(0))

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield the body in pieces of up to 256 KiB."""
        for start in range(0, len(data), _PIECE):
            yield from self._pieces(data[start : start + _PIECE])
        if not self._member.eof:
            raise BrokenReplyError(f"truncated {self._coding} data")

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        piece = b""
        # After a full piece, the decompressor may hold more output.
        while data or (len(piece) == _PIECE and not self._member.eof):
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP)
            piece = self._decompress(data)
            self._size += len(piece)
            if self._size > self._max_bytes:
                text = f"larger than {self._max_bytes} bytes when decompressed"
                raise BrokenReplyError(text, NoAnswer.TOO_LARGE)
            yield piece
            data = self._member.unconsumed_tail or self._member.unused_data

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self._member.decompress(data, _PIECE)
        except zlib.error as error:
            if self._size or not self._windows:
                raise BrokenReplyError(f"invalid {self._coding} data: {error}") from error
        self._member = zlib.decompressobj(self._windows.pop(0))
        return self._decompress(data)


def decoder_of(field: str, max_bytes: int) -> Decoder | None:
    """Return the decoder for a Content-Encoding; None if the body is not encoded."""
    coding = field.strip().lower()
    return None if coding in {"", "identity"} else Decoder(coding, max_bytes)


Soon = Callable[[Callable[[], None]], object]


def _soon(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)


class Receiver(Protocol):
    """A source of an answer that can be paused."""

    def hold(self) -> None:
        """Pause receiving."""
        ...

    def go_on(self) -> None:
        """Resume receiving."""
        ...


@dataclass(slots=True)
class _Answer:
    """An answer; `expected` is 0 if its length is unknown, `reserved` counts in the budget."""

    expected: int = 0
    reserved: int = 0
    is_paused: bool = False


class Intake:
    """Admits answers within the byte budget.

    An answer of known length waits until all of it fits, one of unknown length while the budget is
    spent. The oldest waits for results to be written, but not for other answers: it may exceed the
    budget.
    """

    def __init__(self, budget: ByteBudget, soon: Soon = _soon) -> None:
        self._budget = budget
        self._soon = soon
        self._answers: dict[Receiver, _Answer] = {}
        self._is_scheduled = False
        budget.on_room(self._admit_soon)

    def received(self, receiver: Receiver, size: int, expected: int = 0) -> None:
        """Count the bytes received of an answer so far; may pause the receiver."""
        answer = self._answers.setdefault(receiver, _Answer(expected))
        if size > answer.reserved:
            self._budget.take(size - answer.reserved)
            answer.reserved = size
        if not answer.is_paused and not self._may_receive(receiver, answer):
            answer.is_paused = True
            receiver.hold()

    def ended(self, receiver: Receiver) -> None:
        """Stop counting an answer; its consumer counts the outcome."""
        answer = self._answers.pop(receiver, None)
        if answer is not None:
            self._budget.give(answer.reserved)

    def _may_receive(self, receiver: Receiver, answer: _Answer) -> bool:
        missing = answer.expected - answer.reserved
        if missing > 0 and self._budget.fits(missing):
            self._budget.take(missing)
            answer.reserved = answer.expected
            return True
        is_complete = missing <= 0 and answer.expected > 0
        has_room = not answer.expected and not self._budget.is_spent
        is_next = self._budget.may_be_exceeded and receiver is next(iter(self._answers))
        return is_complete or has_room or is_next

    def _admit_soon(self) -> None:
        """Admit in the next loop iteration, once the outcome of an ended answer is counted."""
        if self._answers and not self._is_scheduled:
            self._is_scheduled = True
            self._soon(self._admit)

    def _admit(self) -> None:
        self._is_scheduled = False
        for receiver, answer in list(self._answers.items()):
            if answer.is_paused:
                if not self._may_receive(receiver, answer):
                    return
                answer.is_paused = False
                receiver.go_on()
