"""Content codings of an upstream's replies (RFC 9110, section 8.4.1), decoded as they come."""

from __future__ import annotations

import zlib
from typing import Final

from lowtide.domain.outcomes import NoAnswer

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

    def feed(self, data: bytes) -> bytes:
        """Return what the next bytes add to the body."""
        parts: list[bytes] = []
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP)
            part = self._decompress(data)
            parts.append(part)
            self._made += len(part)
            if self._made > self._max_bytes:
                text = f"it is over {self._max_bytes} bytes once it is decoded"
                raise BrokenReplyError(text, NoAnswer.TOO_LARGE)
            data = self._member.unconsumed_tail or self._member.unused_data
        return b"".join(parts)

    def finish(self) -> None:
        """Raise BrokenReplyError when the body ended too soon."""
        if not self._member.eof:
            raise BrokenReplyError(f"its {self._coding} coding ends too soon")

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self._member.decompress(data, self._max_bytes - self._made + 1)
        except zlib.error as error:
            if self._made or not self._windows:
                raise BrokenReplyError(f"its {self._coding} coding is damaged: {error}") from error
        self._member = zlib.decompressobj(self._windows.pop(0))
        return self._decompress(data)


def decoder_of(field: str, max_bytes: int) -> Decoder | None:
    """Return what decodes a body of this Content-Encoding; None where nothing is to be decoded."""
    coding = field.strip().lower()
    return None if coding in {"", "identity"} else Decoder(coding, max_bytes)
