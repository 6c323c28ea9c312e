"""Requests to the simulated engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from lowtide.engines.model import EngineRequest
from lowtide.engines.outcomes import Answered
from lowtide.engines.simulated import SimulatedEngine

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"


def ask(endpoint: str, *, attempt: int = 1, **body: Any) -> Answered:
    """Return the engine's answer to a body."""

    async def run() -> Answered:
        text = json.dumps({"model": "m", **body}).encode()
        request = EngineRequest(0, endpoint, text, attempt=attempt, spot=False)
        engine = SimulatedEngine(seed=1, tokens=20)
        groups = [group async for group in engine.run([request])]
        [[(_, outcome)]] = groups
        assert isinstance(outcome, Answered)
        return outcome

    return asyncio.run(run())


def answer(endpoint: str, **body: Any) -> dict[str, Any]:
    """Return the body of a successful answer."""
    outcome = ask(endpoint, **body)
    assert outcome.status_code == 200, outcome.body
    content: dict[str, Any] = json.loads(outcome.body)
    return content


def refusal(endpoint: str, **body: Any) -> dict[str, Any]:
    """Return the error of a body that is answered with 400."""
    outcome = ask(endpoint, **body)
    assert outcome.status_code == 400, outcome.body
    error: dict[str, Any] = json.loads(outcome.body)["error"]
    return error
