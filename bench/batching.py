"""A model of an engine with continuous batching: pure, it knows no clock.

A step makes one token for each running request. Requests that end leave the batch after the step,
and waiting ones take their places before the next one, up to `max_num_seqs`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Hardware:
    """The time of a step, in seconds: a base, and more for each running and each new request."""

    max_num_seqs: int
    step: float = 0.010
    sequence: float = 0.000_03
    prefill: float = 0.000_1
    prefills_per_step: int = 32


class Batch:
    """The requests of one engine; ids are the caller's.

    `waiting` counts those that the last step had no place for, as vLLM reports them; `tokens` counts
    the tokens made so far.
    """

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.running = 0
        self.tokens = 0
        self.waiting = 0
        self._steps = 0
        self._waiting: deque[tuple[int, int]] = deque()
        self._ending: dict[int, list[int]] = {}

    def resize(self, max_num_seqs: int) -> None:
        """Change the size of the batch; running requests stay."""
        self.hardware = replace(self.hardware, max_num_seqs=max_num_seqs)

    def add(self, request: int, tokens: int) -> None:
        """Add a request with an answer of `tokens`, at least 1."""
        self._waiting.append((request, tokens))

    def begin_step(self) -> float:
        """Admit waiting requests; return the seconds that the step takes, 0 if there is no work."""
        hardware = self.hardware
        places = min(hardware.max_num_seqs - self.running, hardware.prefills_per_step)
        admitted = max(0, min(places, len(self._waiting)))
        for _ in range(admitted):
            request, tokens = self._waiting.popleft()
            self._ending.setdefault(self._steps + tokens, []).append(request)
        self.running += admitted
        self.waiting = len(self._waiting)
        if not self.running:
            return 0.0
        return hardware.step + hardware.sequence * self.running + hardware.prefill * admitted

    def end_step(self) -> list[int]:
        """Return the requests whose answer is complete."""
        self._steps += 1
        self.tokens += self.running
        ended = self._ending.pop(self._steps, [])
        self.running -= len(ended)
        return ended
