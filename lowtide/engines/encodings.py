"""Content codings of an upstream's replies (RFC 9110, section 8.4.1), decoded in pieces."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from lowtide.domain.outcomes import NoAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE: Final = 256 * 1024
_GZIP, _ZLIB, _DEFLATE = 31, 15, -15
_WINDOWS: Final = {
    "gzip": (_GZIP,),
    "x-gzip": (_GZIP,),
    # With its wrapper as the RFC has it, or without, as some servers send it.
    "deflate": (_ZLIB, _DEFLATE),
}


class BrokenReplyError(Exception):
    """What came is no complete HTTP reply, or is too large; `code` says which."""

    def __init__(self, message: str, code: NoAnswer = NoAnswer.GARBAGE) -> None:
        super().__init__(message)
        self.code = code


class Decoder:
    """Decodes one body of a coding into at most `max_bytes`; raises BrokenReplyError."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        if coding not in _WINDOWS:
            raise BrokenReplyError(f"it is encoded as {coding[:100]!r}, which was not asked for")
        self._coding = coding
        self._windows = list(_WINDOWS[coding])
        self._max_bytes = max_bytes
        self._made = 0
        self._member = zlib.decompressobj(self._windows.pop(0))

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield the body in pieces of up to 256 KiB."""
        for start in range(0, len(data), _PIECE):
            yield from self._pieces(data[start : start + _PIECE])
        if not self._member.eof:
            raise BrokenReplyError(f"its {self._coding} coding ends too soon")

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        made = b""
        # A piece that is full may not be all that there is of what was read.
        while data or (len(made) == _PIECE and not self._member.eof):
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP)
            made = self._decompress(data)
            self._made += len(made)
            if self._made > self._max_bytes:
                text = f"it is over {self._max_bytes} bytes once it is decoded"
                raise BrokenReplyError(text, NoAnswer.TOO_LARGE)
            yield made
            data = self._member.unconsumed_tail or self._member.unused_data

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self._member.decompress(data, _PIECE)
        except zlib.error as error:
            if self._made or not self._windows:
                raise BrokenReplyError(f"its {self._coding} coding is damaged: {error}") from error
        self._member = zlib.decompressobj(self._windows.pop(0))
        return self._decompress(data)


def decoder_of(field: str, max_bytes: int) -> Decoder | None:
    """Return what decodes a body of this Content-Encoding; None where nothing is to be decoded."""
    coding = field.strip().lower()
    return None if coding in {"", "identity"} else Decoder(coding, max_bytes)
