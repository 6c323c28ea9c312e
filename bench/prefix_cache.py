"""A model of vLLM's prefix cache: blocks of 16 tokens, shared by prompts that begin alike; pure.

A full block is known by its tokens and all before them. Blocks in use are counted; unused ones keep
their content and are evicted least recently used first, those of one request last block first, so
that beginnings outlive ends. A request gets all blocks of its prompt and its answer when it starts,
and waits while there are too few; vLLM gives those of the answer as it grows, and preempts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

BLOCK_TOKENS: Final = 16
TOKEN_CHARACTERS: Final = 4
"""A token is four characters here: the average of English text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the cache sees it: its length, and a key for each full block before its last token.

    The last token is always computed: its block is of no use to the same prompt again.
    """

    tokens: int
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Prompt:
        """Return the prompt of a rendered text."""
        size = BLOCK_TOKENS * TOKEN_CHARACTERS
        blocks: list[int] = []
        before = 0
        for start in range(0, len(text) - size, size):
            before = hash((before, text[start : start + size]))
            blocks.append(before)
        return cls(-(-len(text) // TOKEN_CHARACTERS), tuple(blocks))


class PrefixCache:
    """The blocks of one engine; `queried` and `hit` count prompt tokens, as vLLM's metrics do."""

    def __init__(self, blocks: int) -> None:
        self.queried = self.hit = 0
        self._empty = blocks
        self._in_use: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._held: dict[int, tuple[Prompt, int]] = {}

    def start(self, request: int, prompt: Prompt, answer: int) -> int | None:
        """Give a request its blocks; return the tokens to compute, None while it has to wait."""
        cached = list(takewhile(self._is_cached, prompt.blocks))
        total = -(-(prompt.tokens + answer) // BLOCK_TOKENS)
        new = total - len(cached)
        kept = sum(key in self._unused for key in cached)
        if new > self._empty + len(self._unused) - kept:
            return None
        for key in cached:
            self._unused.pop(key, None)
        self._take(new)
        for key in prompt.blocks:
            self._in_use[key] = self._in_use.get(key, 0) + 1
        self._held[request] = prompt, total - len(prompt.blocks)
        hit = len(cached) * BLOCK_TOKENS
        self.queried += prompt.tokens
        self.hit += hit
        return prompt.tokens - hit

    def end(self, request: int) -> None:
        """Return a request's blocks; those of its prompt stay cached until they are evicted."""
        prompt, own = self._held.pop(request)
        self._empty += own
        for key in reversed(prompt.blocks):
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]
                self._unused[key] = None

    def _is_cached(self, key: int) -> bool:
        return key in self._in_use or key in self._unused

    def _take(self, blocks: int) -> None:
        evicted = max(0, blocks - self._empty)
        for _ in range(evicted):
            self._unused.popitem(last=False)
        self._empty += evicted - blocks
