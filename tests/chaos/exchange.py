"""Requests of a chaos run and the correct answer to each, shared by sender, engine and oracle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.oracle import InputLine

MODEL = "tide-chaos"
FLEETS = {"main": MODEL, "annex": "tide-annex"}
"""The fleets of the stack with the model of each."""
ENDPOINT = "/v1/chat/completions"
POISON = "x_status"
"""The body field that makes every engine answer the request with this status."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request; `marker` is its unique name in the run, `status` the status of a poison request."""

    marker: str
    status: int = 200
    model: str = MODEL

    @property
    def custom_id(self) -> str:
        """The id within its batch."""
        return self.marker.rpartition("/")[2]

    def body(self) -> dict[str, Any]:
        """Return the body for the engine."""
        poison = {} if self.status == 200 else {POISON: self.status}
        messages = [{"role": "user", "content": self.marker}]
        return {"model": self.model, "messages": messages, **poison}

    def line(self) -> bytes:
        """Return the line of the input file."""
        line = {
            "custom_id": self.custom_id,
            "method": "POST",
            "url": ENDPOINT,
            "body": self.body(),
        }
        return json.dumps(line).encode() + b"\n"


def input_file(requests: Iterable[Request]) -> bytes:
    """Return an input file."""
    return b"".join(request.line() for request in requests)


def marker_of(body: Mapping[str, Any]) -> str:
    """Return the marker of a request from its body."""
    return str(body["messages"][-1]["content"])


def answer(body: Mapping[str, Any], padding: int = 0) -> dict[str, Any]:
    """Return the correct answer, with `padding` extra characters."""
    marker = marker_of(body)
    digest = hashlib.sha256(marker.encode()).hexdigest()
    prompt, completion = 1 + len(marker), 1 + int(digest[:2], 16)
    message = {"role": "assistant", "content": f"{marker} {digest}" + "~" * padding}
    return {
        "id": f"chatcmpl-{digest[:16]}",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


def check_answer(line: InputLine, body: Any) -> None:
    """Assert that a body is the correct answer to its request, with any padding."""
    assert POISON not in line.body, f"a poison request succeeded: {line.custom_id}"
    expected = answer(line.body)
    assert isinstance(body, dict), f"{line.custom_id}: no answer: {str(body)[:300]}"
    assert "choices" in body, f"{line.custom_id}: no answer: {str(body)[:300]}"
    received = json.loads(json.dumps(body))
    message = received["choices"][0]["message"]
    message["content"] = message["content"].rstrip("~")
    assert received == expected, (
        f"{line.custom_id}: another's answer, or none: {str(received)[:300]}"
    )


def latency(marker: str) -> float:
    """Return the seconds that a healthy engine takes for a request: 20 to 60 ms."""
    return 0.02 + hashlib.sha256(marker.encode()).digest()[1] / 255 * 0.04
