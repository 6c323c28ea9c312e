"""Batch files of any size; the same arguments give the same bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SENTENCE = (
    "the tide rises slowly over grey sand and harbour lights answer one another across cold "
    "water while gulls argue über dem Kai"
)
_HEAD = (
    '{"custom_id": "request-%07d", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"model": "%s", "messages": [{"role": "user", "content": "'
)
_TAIL = '"}], "temperature": 0, "max_tokens": 64}}\n'


def write_batch_file(
    path: Path, lines: int, line_bytes: int, models: Sequence[str] = ("llama-3.1-8b-instruct",)
) -> None:
    """Write chat requests of exactly `line_bytes` bytes each, newline included, to models in turn."""
    rng = random.Random(lines * 1_000_003 + line_bytes)  # noqa: S311
    text = " ".join(rng.choices(_SENTENCE.split(), k=20_000)).encode()
    with path.open("wb") as file:
        for number in range(lines):
            head = _HEAD % (number, models[number % len(models)])
            length = line_bytes - len(head) - len(_TAIL)
            start = rng.randrange(len(text) - line_bytes)
            # A cut may split a two-byte character: its bytes become spaces.
            said = text[start : start + length].decode(errors="replace")
            said = said.replace("\ufffd", " ")
            file.write((head + said + _TAIL).encode())
