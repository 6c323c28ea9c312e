"""Encryption of objects and texts: AES-256-GCM in segments of 64 KiB.

The format is STREAM (Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015): the nonce of a segment is
its number and whether it is the last, so that no segment can be removed, repeated or moved. Each
object has a key of its own, derived by HKDF-SHA256 from the data key, a random salt and the object's
name: no nonce repeats, and an object under another name cannot be read. docs/adr/0022 has the layout.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from codecs import getincrementaldecoder
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lowtide.objects.names import MARK, Damaged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SEGMENT: Final = 64 * 1024
"""Bytes of text in every segment but the last."""
SEALED_SEGMENT: Final = SEGMENT + 16
_MAGIC: Final = b"LTS1"
HEADER: Final = len(_MAGIC) + 32
"""Bytes before the first segment: a magic number with the version, and the salt."""
KEY_BYTES: Final = 32
_INFO: Final = b"lowtide sealed 1\0"


class _Segments:
    """The cipher of the segments of one object."""

    def __init__(self, data_key: bytes, name: bytes, salt: bytes) -> None:
        derived = HKDF(SHA256(), KEY_BYTES, salt, _INFO + name).derive(data_key)
        self._cipher = AESGCM(derived)

    def seal(self, number: int, data: memoryview | bytes, *, last: bool) -> bytes:
        """Encrypt a segment."""
        return self._cipher.encrypt(_nonce(number, last=last), data, None)

    def open(self, number: int, data: memoryview | bytes, *, last: bool | None) -> bytes:
        """Decrypt a segment; None accepts one that may be the last or not. Raises Damaged."""
        for is_last in (False, True) if last is None else (last,):
            try:
                return self._cipher.decrypt(_nonce(number, last=is_last), data, None)
            except (InvalidTag, ValueError):
                continue
        raise Damaged("The encrypted bytes were changed, cut or moved: restore the object.")


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(8) + last.to_bytes(4)


class _Cutter:
    """Cuts bytes that arrive in pieces into equal ones; the last waits, as it may be the end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting = b""

    def cut(self, data: bytes) -> Iterator[memoryview | bytes]:
        """Yield the pieces after which at least a byte follows."""
        waiting, size = self._waiting, self._size
        # Only a piece that spans two arrivals is copied.
        start = min(size - len(waiting), len(data)) if waiting else 0
        if waiting:
            waiting += data[:start]
            if start < len(data):
                yield waiting
                waiting = b""
        view = memoryview(data)
        while len(view) - start > size:
            yield view[start : start + size]
            start += size
        self._waiting = waiting + data[start:]

    def end(self) -> bytes:
        """Return what waits."""
        return self._waiting


class Sealer:
    """Encrypts an object as it is written: the header, the segments of `add`, and that of `end`."""

    def __init__(self, data_key: bytes, name: bytes) -> None:
        salt = os.urandom(HEADER - len(_MAGIC))
        self.header = _MAGIC + salt
        self._segments = _Segments(data_key, name, salt)
        self._cutter = _Cutter(SEGMENT)
        self._number = 0

    def add(self, data: bytes) -> Iterator[bytes]:
        """Yield the segments that `data` completes."""
        for piece in self._cutter.cut(data):
            yield self._segments.seal(self._number, piece, last=False)
            self._number += 1

    def end(self) -> bytes:
        """Return the last segment."""
        return self._segments.seal(self._number, self._cutter.end(), last=True)


class Opener:
    """Decrypts an object, or a run of its segments from `number` on; raises Damaged."""

    def __init__(self, data_key: bytes, name: bytes, header: bytes, number: int = 0) -> None:
        if len(header) != HEADER or not header.startswith(_MAGIC):
            raise Damaged("The object has no header of an encrypted object: restore it.")
        self._segments = _Segments(data_key, name, header[len(_MAGIC) :])
        self._cutter = _Cutter(SEALED_SEGMENT)
        self._number = number

    def add(self, data: bytes) -> Iterator[bytes]:
        """Yield the segments that `data` completes; the last one waits for `end`."""
        for piece in self._cutter.cut(data):
            yield self._open(piece, last=False)

    def end(self, *, last: bool | None = True) -> bytes:
        """Return the remaining segment; `last` is None if the object may go on after it."""
        data = self._cutter.end()
        if last is None and len(data) < SEALED_SEGMENT:
            last = True
        return self._open(data, last=last)

    def run(self, number: int, data: bytes, count: int) -> bytes:
        """Return `count` segments from `number` on; fewer, or a short one, must be the last ones."""
        self._number = number
        view = memoryview(data)
        ends = len(view) < count * SEALED_SEGMENT
        starts = range(0, max(len(view), 1), SEALED_SEGMENT)
        *before, final = [view[at : at + SEALED_SEGMENT] for at in starts]
        opened = [self._open(segment, last=False) for segment in before]
        opened.append(self._open(final, last=True if ends else None))
        return b"".join(opened)

    def _open(self, data: memoryview | bytes, *, last: bool | None) -> bytes:
        opened = self._segments.open(self._number, data, last=last)
        self._number += 1
        return opened


def seal_text(data_key: bytes, name: bytes, text: bytes) -> bytes:
    """Encrypt a text for a column: the mark, then Base64 without padding."""
    sealer = Sealer(data_key, name)
    sealed = b"".join([sealer.header, *sealer.add(text), sealer.end()])
    return MARK.encode() + b64encode(sealed).rstrip(b"=")


def open_text(data_key: bytes, name: bytes, pieces: Iterable[str]) -> Iterator[str]:
    """Decrypt a sealed text whose pieces arrive one after the other; raises Damaged."""
    decode = getincrementaldecoder("utf-8")().decode
    opener: Opener | None = None
    waiting = b""
    for data in _decoded(pieces):
        waiting += data
        if opener is None and len(waiting) >= HEADER:
            opener = Opener(data_key, name, waiting[:HEADER])
            waiting = waiting[HEADER:]
        if opener is not None:
            yield from map(decode, opener.add(waiting))
            waiting = b""
    if opener is None:
        raise Damaged("The encrypted text was cut: restore the database.")
    yield decode(opener.end())


def text_size(octets: int) -> int:
    """Return the bytes of the text that a sealed one of `octets` bytes holds."""
    sealed = (octets - len(MARK)) * 3 // 4 - HEADER
    return sealed - 16 * -(-sealed // SEALED_SEGMENT)


def _decoded(pieces: Iterable[str]) -> Iterator[bytes]:
    """Yield the bytes of Base64 that is cut anywhere, after the mark."""
    waiting, skip = "", len(MARK)
    try:
        for piece in pieces:
            waiting += piece[skip:]
            skip = max(0, skip - len(piece))
            whole = len(waiting) // 4 * 4
            yield b64decode(waiting[:whole], validate=True)
            waiting = waiting[whole:]
        yield b64decode(waiting + "=" * (-len(waiting) % 4), validate=True)
    except ValueError as error:
        raise Damaged("The encrypted text was changed: restore the database.") from error
