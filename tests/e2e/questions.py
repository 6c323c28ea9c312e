"""Batch files for tests, and the simulated engine's expected answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.oracle import InputLine

_EXCERPT = 200  # prompt characters that the simulated engine repeats


def chat_file(lines: int) -> bytes:
    """Return a batch file; prompts differ in their first word, and most in length."""
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
    """Assert that `body` is the simulated engine's answer to this request."""
    prompt = line.body["messages"][-1]["content"]
    assert body["object"] == "chat.completion"
    assert body["model"] == line.body["model"]
    assert body["usage"]["prompt_tokens"] == 1 + len(prompt) // 4
    text = body["choices"][0]["message"]["content"]
    expected = ["Simulated", "answer", "to:", *prompt[:_EXCERPT].split()]
    if line.body.get("response_format") == {"type": "json_object"}:
        # A token limit may cut the answer anywhere.
        whole = json.dumps(
            {"answer": " ".join(expected)}, ensure_ascii=False, separators=(",", ":")
        )
        shorter = min(len(text.rstrip('"}')), len(whole) - 2)
        assert text[:shorter] == whole[:shorter]
        return
    words = text.split()
    shorter = min(len(words), len(expected))
    assert words[:shorter] == expected[:shorter]
