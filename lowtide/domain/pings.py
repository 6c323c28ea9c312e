"""The smallest request that an endpoint takes, to see whether an engine still computes anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lowtide.domain.attribution import EngineState, Fault, attribute
from lowtide.domain.breaker import Probed
from lowtide.domain.outcomes import Answered
from lowtide.domain.settlement import reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.domain.outcomes import Outcome

_TEXT: Final = "ping"
# The Responses API takes no limit below 16.
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
    """A minimal request of an endpoint and a model; some endpoints need no model."""

    endpoint: str
    model: str | None = None

    def body(self) -> bytes | None:
        """Return what to send; None for an endpoint that has no minimal request."""
        smallest = _SMALLEST.get(self.endpoint)
        if smallest is None:
            return None
        model = {} if self.model is None else {"model": self.model}
        return msgspec.json.encode({**model, **smallest})


def probed_by(outcome: Outcome, asked: str) -> Probed:
    """Return what the outcome of a minimal request shows; `asked` names it.

    A refusal, as of a parameter, shows nothing.
    """
    if isinstance(outcome, Answered) and outcome.succeeded:
        return Probed(well=True, answers=True)
    lacks_model = isinstance(outcome, Answered) and outcome.lacks_model
    if lacks_model or attribute(outcome, EngineState()) is not Fault.ENGINE:
        return Probed(well=True, lacks_model=lacks_model)
    return Probed(well=False, reason=f"{asked}: {reason_of(outcome)}")
