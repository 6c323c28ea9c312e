"""Answers of batches with zero retention: encrypted in the database with the key of their batch."""

from __future__ import annotations

import dataclasses
from itertools import chain
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from lowtide.objects.names import MARK, DataKeyId, KeyDestroyed, no_data_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowtide.batches.results import FinishedLine, RequestState
    from lowtide.core.ids import BatchId, TenantId


_DESTROYED = "This text was kept with zero retention and has been destroyed."


class Answers:
    """Encrypts and decrypts bodies and messages, each bound to its batch and line.

    `key_of` returns a data key; raises KeyDestroyed. Plain texts pass unchanged, as those that the
    scheduler writes: a body is JSON, which never starts as an encrypted text does.
    """

    def __init__(self, key_of: Callable[[DataKeyId], bytes] = no_data_key) -> None:
        self._key_of = key_of

    def seal(self, tenant: TenantId, batch: BatchId, line: int, text: bytes) -> bytes:
        """Encrypt a text; raises KeyDestroyed."""
        from lowtide.objects.sealing import seal_text

        return seal_text(self._key_of(DataKeyId(tenant, batch)), _name(batch, line), text)

    def pieces(
        self, tenant: TenantId, batch: BatchId, line: int, pieces: Iterator[str]
    ) -> Iterator[str]:
        """Yield a text that may be encrypted; raises KeyDestroyed before the first piece."""
        first = next(pieces, "")
        if first.startswith(MARK):
            from lowtide.objects.sealing import open_text

            data_key = self._key_of(DataKeyId(tenant, batch))
            return open_text(data_key, _name(batch, line), chain([first], pieces))
        box = [first]
        del first
        # No reference to a piece remains while its reader is busy.
        return chain((box.pop() for _ in range(1)), pieces)

    def text(self, tenant: TenantId, batch: BatchId, line: int, text: str) -> str:
        """Return a text that may be encrypted; raises KeyDestroyed."""
        if not text.startswith(MARK):
            return text
        return "".join(self.pieces(tenant, batch, line, iter([text])))

    def message(
        self, tenant: TenantId, batch: BatchId, line: int | None, text: str | None
    ) -> str | None:
        """Return a message that may be encrypted, or that it was destroyed."""
        if text is None or line is None:
            return text
        try:
            return self.text(tenant, batch, line, text)
        except KeyDestroyed:
            return _DESTROYED

    def state(self, tenant: TenantId, batch: BatchId, state: RequestState) -> RequestState:
        """Return the state of a request whose message may be encrypted."""
        message = self.message(tenant, batch, state.line, state.error_message)
        return dataclasses.replace(state, error_message=message)

    def line(self, tenant: TenantId, batch: BatchId, line: FinishedLine) -> FinishedLine:
        """Return a result whose texts may be encrypted; raises KeyDestroyed."""
        if not (is_sealed_text(line.body) or is_sealed_text(line.error_message)):
            return line
        body, message = (
            text and self.text(tenant, batch, line.number, text)
            for text in (line.body, line.error_message)
        )
        return replace(line, body=body, error_message=message)


NO_ANSWERS: Final = Answers()
"""Reads plain texts only."""


def is_sealed_text(text: str | None) -> bool:
    """Return whether a text is encrypted."""
    return text is not None and text.startswith(MARK)


def beginning(pieces: Iterator[str], length: int) -> str:
    """Return the first characters of a text in pieces, without reading on."""
    shown = ""
    while len(shown) < length and (piece := next(pieces, "")):
        shown += piece
    return shown[:length]


def _name(batch: BatchId, line: int) -> bytes:
    return b"answer\0" + batch.bytes + line.to_bytes(8)
