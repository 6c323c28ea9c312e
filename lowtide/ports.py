"""What the services need from the outside, as small Protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    from lowtide.domain.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request for an engine.

    `key` is the caller's own and comes back with the outcome; `body` is exact JSON; `spot` says
    that the capacity may be interrupted; `attempt` counts from 1.
    """

    key: int
    endpoint: str
    body: bytes
    attempt: int
    spot: bool


class Engine(Protocol):
    """Runs requests, many at a time."""

    def run(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """Yield (key, outcome) pairs as they finish, in groups of any size.

        Called concurrently; the engine bounds what is in flight over all calls. Every key is
        yielded exactly once; failures are outcomes, never exceptions.
        """
        ...

    async def models(self) -> Sequence[str]:
        """Return the models that are served; empty when any name is."""
        ...

    async def close(self) -> None:
        """Let go of connections; requests in flight are abandoned."""
        ...


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
        """Return the bytes of each (offset, length), near ones fetched together."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; unknown keys are fine."""
        ...

    def check(self) -> None:
        """Raise when the store does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """A CloudEvent: `type` is reverse-DNS, `subject` the public id it is about."""

    id: str
    type: str
    subject: str
    data: Mapping[str, object]
    time: datetime


class EventSink(Protocol):
    """Where CloudEvents go."""

    def publish(self, event: Event) -> bool:
        """Send one event; return whether the sink accepted it. Never raises."""
        ...
