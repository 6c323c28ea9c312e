"""Input files of a few requests, one for each endpoint's shape."""

from __future__ import annotations

import json
import re
from typing import Any

CHAT = "/v1/chat/completions"
MODEL = "tide-1"
REFUSE = "refuse"
HELD = re.compile(rb"hold for ([a-z-]+)")
BROKEN = re.compile(rb"broken for ([a-z-]+)")
_PROMPT_FIELD = {
    CHAT: "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/responses": "input",
    "/v1/moderations": "input",
}
ENDPOINTS = tuple(_PROMPT_FIELD)


def request(custom_id: str, prompt: str = "How high?", *, endpoint: str = CHAT) -> dict[str, Any]:
    """Return one valid line as an object."""
    content = [{"role": "user", "content": prompt}] if endpoint == CHAT else prompt
    body = {"model": MODEL, _PROMPT_FIELD[endpoint]: content}
    return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body}


def jsonl(*lines: dict[str, Any]) -> bytes:
    """Return lines as a file."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def requests(count: int, *, endpoint: str = CHAT) -> bytes:
    """Return a valid input file."""
    return jsonl(
        *(
            request(f"line-{number}", f"Question {number}?", endpoint=endpoint)
            for number in range(1, count + 1)
        )
    )


def held(name: str, count: int) -> list[dict[str, Any]]:
    """Return lines that the suite's own engine answers once `name` is released."""
    return [request(f"held-{number}", f"hold for {name}") for number in range(count)]


def broken(name: str, count: int) -> list[dict[str, Any]]:
    """Return lines that the suite's own engine answers with 500 until `name` is mended."""
    return [request(f"broken-{number}", f"broken for {name}") for number in range(count)]
