"""Whatever runs requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lowtide.domain.breaker import Probed
    from lowtide.domain.outcomes import Outcome
    from lowtide.domain.pings import Ping
    from lowtide.domain.traces import TraceContext


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request for an engine.

    `key` is the caller's own and comes back with the outcome; `body` is exact JSON; `spot` says
    that the capacity may be interrupted; `attempt` counts from 1; `interruptions` is how often it
    was interrupted before; `trace` is what the engine may continue.
    """

    key: int
    endpoint: str
    body: bytes
    attempt: int
    spot: bool
    interruptions: int = 0
    trace: TraceContext | None = None


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

    async def probe(self, ping: Ping | None = None) -> Probed:
        """Ask how the engine is: its health, and a minimal request.

        Takes seconds at most, whatever the engine does, and raises nothing.
        """
        ...

    def limit(self, in_flight: int) -> None:
        """Let no more requests be in flight from now on; those that are go on."""
        ...

    async def models(self) -> Sequence[str]:
        """Return the models that are served; empty when any name is."""
        ...

    async def close(self) -> None:
        """Let go of connections; requests in flight are abandoned."""
        ...
