"""Where bytes live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self


class ObjectWriter(Protocol):
    """An object being written; it exists only once the block ends without an exception."""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class ObjectStore(Protocol):
    """Where files live."""

    def open_writer(self, key: str) -> ObjectWriter:
        """Start an object; memory stays bounded however much is written."""
        ...

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end`; raises NotFound for an unknown key."""
        ...

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Return the bytes of each (offset, length), near ones fetched together.

        What lies behind the object's end comes short, or is empty.
        """
        ...

    async def fetch_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Do what `read_ranges` does without blocking; cancelling ends the read."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; unknown keys are fine."""
        ...

    def check(self) -> None:
        """Raise when the store does not answer."""
        ...
