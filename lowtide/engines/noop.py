"""An engine that does nothing, at once: what remains is the queue's own speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lowtide.domain.breaker import Probed
from lowtide.domain.outcomes import Answered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lowtide.domain.outcomes import Outcome
    from lowtide.domain.pings import Ping
    from lowtide.ports import EngineRequest

ANSWER: Final = Answered(200, b'{"object":"noop"}')


class NoopEngine:
    """Answers every request with the same few bytes."""

    async def run(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """Yield all outcomes as one group."""
        if requests:
            yield [(request.key, ANSWER) for request in requests]

    async def probe(self, ping: Ping | None = None) -> Probed:  # noqa: ARG002
        """Return that it is well."""
        return Probed(well=True, answers=True)

    def limit(self, in_flight: int) -> None:
        """Do nothing: nothing is ever in flight."""

    async def models(self) -> Sequence[str]:
        """Return nothing: any model name is served."""
        return ()

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""
