"""Batch files made for tests, and what the simulated engine must answer to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.oracle import InputLine

_EXCERPT = 200  # characters of the prompt that the simulated engine repeats


def chat_file(lines: int) -> bytes:
    """Return a batch file; each prompt differs from every other in its first word and most in length."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "tide-1",
                    "messages": [
                        {
                            "role": "user",
                            "content": f"Q{number}: how high is the tide {'tonight ' * (number % 23)}?",
                        }
                    ],
                },
            }
        ).encode()
        + b"\n"
        for number in range(1, lines + 1)
    )


def simulated_answer(line: InputLine, body: Any) -> None:
    """Assert that the simulated engine answered this request and no other."""
    prompt = line.body["messages"][-1]["content"]
    assert body["object"] == "chat.completion"
    assert body["model"] == line.body["model"]
    assert body["usage"]["prompt_tokens"] == 1 + len(prompt) // 4
    text = body["choices"][0]["message"]["content"]
    wanted = ["Simulated", "answer", "to:", *prompt[:_EXCERPT].split()]
    if line.body.get("response_format") == {"type": "json_object"}:
        # A limit may have cut it anywhere.
        whole = json.dumps({"answer": " ".join(wanted)}, ensure_ascii=False, separators=(",", ":"))
        shorter = min(len(text.rstrip('"}')), len(whole) - 2)
        assert text[:shorter] == whole[:shorter]
        return
    said = text.split()
    shorter = min(len(said), len(wanted))
    assert said[:shorter] == wanted[:shorter]
