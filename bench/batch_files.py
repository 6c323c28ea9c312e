"""Batch files of any size; the same arguments give the same bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SENTENCE = (
    "the tide rises slowly over grey sand and harbour lights answer one another across cold "
    "water while gulls argue über dem Kai"
)
_HEAD = (
    '{"custom_id": "request-%07d", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"model": "llama-3.1-8b-instruct", "messages": [{"role": "user", "content": "'
)
_TAIL = '"}], "temperature": 0, "max_tokens": 64}}\n'


def write_batch_file(path: Path, lines: int, line_bytes: int) -> None:
    """Write chat requests of exactly `line_bytes` bytes each, newline included."""
    rng = random.Random(lines * 1_000_003 + line_bytes)  # noqa: S311
    frame = len(_HEAD % 0) + len(_TAIL)
    text = " ".join(rng.choices(_SENTENCE.split(), k=20_000)).encode()
    with path.open("wb") as file:
        for number in range(lines):
            start = rng.randrange(len(text) - line_bytes)
            # A cut may split a two-byte character: its bytes become spaces.
            said = text[start : start + line_bytes - frame].decode(errors="replace")
            said = said.replace("\ufffd", " ")
            file.write((_HEAD % number + said + _TAIL).encode())
