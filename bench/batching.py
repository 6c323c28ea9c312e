"""A model of an engine with continuous batching: pure, it knows no clock.

A step makes one token for each running request. Requests that end leave the batch after the step,
and waiting ones take their places before the next one, up to `max_num_seqs`. With a prefix cache,
they also need its blocks, and a step computes prompt tokens up to a budget.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.prefix_cache import PrefixCache, Prompt


@dataclass(frozen=True, slots=True)
class Hardware:
    """The time of a step, in seconds: a base, and more for each running and each new request.

    With a prefix cache, the new ones cost `prompt_token` for each token of a prompt to compute; a
    step that has `prompt_tokens_per_step` of them admits no more.
    """

    max_num_seqs: int
    step: float = 0.010
    sequence: float = 0.000_03
    prefill: float = 0.000_1
    prefills_per_step: int = 32
    prompt_token: float = 0.000_015
    prompt_tokens_per_step: int = 8192


class Batch:
    """The requests of one engine; ids are the caller's.

    `waiting` counts those that the last step had no place for, as vLLM reports them; `tokens` counts
    the tokens made so far.
    """

    def __init__(self, hardware: Hardware, cache: PrefixCache | None = None) -> None:
        self.hardware = hardware
        self.cache = cache
        self.running = 0
        self.tokens = 0
        self.waiting = 0
        self._steps = 0
        self._waiting: deque[tuple[int, int, Prompt | None]] = deque()
        self._ending: dict[int, list[int]] = {}

    def resize(self, max_num_seqs: int) -> None:
        """Change the size of the batch; running requests stay."""
        self.hardware = replace(self.hardware, max_num_seqs=max_num_seqs)

    def add(self, request: int, tokens: int, prompt: Prompt | None = None) -> None:
        """Add a request with an answer of `tokens`, at least 1; a cache needs its prompt."""
        self._waiting.append((request, tokens, prompt))

    def begin_step(self) -> float:
        """Admit waiting requests; return the seconds that the step takes, 0 if there is no work."""
        hardware = self.hardware
        places = min(hardware.max_num_seqs - self.running, hardware.prefills_per_step)
        admitted = computed = 0
        while self._waiting and admitted < places and computed < hardware.prompt_tokens_per_step:
            request, tokens, prompt = self._waiting[0]
            if self.cache is not None and prompt is not None:
                new = self.cache.start(request, prompt, tokens)
                if new is None:
                    break
                computed += new
            self._waiting.popleft()
            self._ending.setdefault(self._steps + tokens, []).append(request)
            admitted += 1
        self.running += admitted
        self.waiting = len(self._waiting)
        if not self.running:
            return 0.0
        prefill = hardware.prefill * admitted + hardware.prompt_token * computed
        return hardware.step + hardware.sequence * self.running + prefill

    def end_step(self) -> list[int]:
        """Return the requests whose answer is complete."""
        self._steps += 1
        self.tokens += self.running
        ended = self._ending.pop(self._steps, [])
        self.running -= len(ended)
        if self.cache is not None:
            for request in ended:
                self.cache.end(request)
        return ended
