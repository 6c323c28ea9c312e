"""The Engine protocol, probes, and an engine that does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from lowtide.engines.attribution import EngineState, Fault, attribute, reason_of
from lowtide.engines.breaker import Probed
from lowtide.engines.outcomes import Answered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from lowtide.engines.load import EngineLoad
    from lowtide.engines.outcomes import Outcome
    from lowtide.engines.telemetry import EngineTelemetry
    from lowtide.telemetry.tracing import TraceContext


_TEXT: Final = "ping"
# The Responses API rejects limits below 16.
_SMALLEST: Final[Mapping[str, Mapping[str, Any]]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": _TEXT}],
        "max_tokens": 1,
    },
    "/v1/completions": {"prompt": _TEXT, "max_tokens": 1},
    "/v1/embeddings": {"input": _TEXT},
    "/v1/responses": {"input": _TEXT, "max_output_tokens": 16},
    "/v1/moderations": {"input": _TEXT},
}


@dataclass(frozen=True, slots=True)
class Ping:
    """A minimal request to an endpoint and a model; some endpoints need no model."""

    endpoint: str
    model: str | None = None

    def body(self) -> bytes | None:
        """Return the body to send; None for an endpoint without a minimal request."""
        smallest = _SMALLEST.get(self.endpoint)
        if smallest is None:
            return None
        model = {} if self.model is None else {"model": self.model}
        return msgspec.json.encode({**model, **smallest})


def probed_by(outcome: Outcome, request: str) -> Probed:
    """Return the probe result of a minimal request; `request` names the request in the reason.

    A rejection, of a parameter for example, counts neither as an answer nor against the engine.
    """
    if isinstance(outcome, Answered) and outcome.succeeded:
        return Probed(well=True, answers=True)
    lacks_model = isinstance(outcome, Answered) and outcome.lacks_model
    if lacks_model or attribute(outcome, EngineState()) is not Fault.ENGINE:
        return Probed(well=True, lacks_model=lacks_model)
    return Probed(well=False, reason=f"{request}: {reason_of(outcome)}")


class EngineRequest(msgspec.Struct, frozen=True, gc=False):
    """One request for an engine.

    `key` is chosen by the worker and comes back with the outcome; `body` is exact JSON; `spot`
    marks capacity that may be interrupted; `attempt` counts from 1; `interruptions` counts earlier
    interruptions; `trace` is the context that the engine may continue.
    """

    key: int
    endpoint: str
    body: bytes
    attempt: int
    spot: bool
    interruptions: int = 0
    trace: TraceContext | None = None


class Engine(Protocol):
    """An engine that runs many requests concurrently."""

    def run(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[Sequence[tuple[int, Outcome]]]:
        """Yield (key, outcome) pairs as they finish, in groups of any size.

        Safe to call concurrently; the engine bounds the requests in flight over all calls. Every
        key is yielded exactly once; failures are outcomes, never exceptions.
        """
        ...

    async def probe(self, ping: Ping | None = None) -> Probed:
        """Check the engine's health, and send a minimal request if one is given.

        Takes seconds at most, whatever the engine does, and never raises.
        """
        ...

    def limit(self, in_flight: int) -> None:
        """Set the max number of requests in flight; those already running continue."""
        ...

    async def load(self) -> EngineLoad | None:
        """Return the requests in the engine; None if it does not report them.

        Takes seconds at most, whatever the engine does, and never raises.
        """
        ...

    async def telemetry(self) -> EngineTelemetry | None:
        """Return the metrics that the engine reports of itself; None if it reports none.

        Takes seconds at most, whatever the engine does, and never raises.
        """
        ...

    async def models(self) -> Sequence[str]:
        """Return the models served; empty if the engine serves any name."""
        ...

    async def close(self) -> None:
        """Close the connections; requests in flight are abandoned."""
        ...


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
        """Report a healthy engine."""
        return Probed(well=True, answers=True)

    def limit(self, in_flight: int) -> None:
        """Do nothing: no request is ever in flight."""

    async def load(self) -> EngineLoad | None:
        """Report nothing."""
        return None

    async def telemetry(self) -> EngineTelemetry | None:
        """Report nothing."""
        return None

    async def models(self) -> Sequence[str]:
        """Return no names: any model is served."""
        return ()

    async def close(self) -> None:
        """Do nothing: there are no connections."""
