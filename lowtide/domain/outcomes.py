"""What an engine says of a line, and what becomes of the line then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.backoff import retry_delay

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """The engine answered over HTTP; `body` is one JSON value as text, exactly as it came.

    `retry_after` is in seconds.
    """

    status_code: int
    body: str
    request_id: str = ""
    usage: Usage = Usage()
    retry_after: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code < 300


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The engine gave no usable answer: timeout, connection lost, garbage. Always worth a retry."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The capacity under the line went away; never the line's fault."""

    reason: str


Outcome = Answered | Unanswered | Interrupted

TRANSIENT_STATUSES = frozenset({408, 409, 425, 429}) | frozenset(range(500, 600))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a failed line is tried again; times in seconds."""

    max_attempts: int = 5
    base: float = 1.0
    cap: float = 60.0

    @staticmethod
    def is_transient(outcome: Answered | Unanswered) -> bool:
        """Whether the same request may succeed later."""
        return isinstance(outcome, Unanswered) or outcome.status_code in TRANSIENT_STATUSES

    def delay(self, outcome: Answered | Unanswered, attempts: int, rng: Random) -> float | None:
        """Return the seconds until the next attempt, or None when this failure is the last.

        `attempts` counts the attempt that just failed.
        """
        if not self.is_transient(outcome) or attempts >= self.max_attempts:
            return None
        retry_after = outcome.retry_after if isinstance(outcome, Answered) else None
        return retry_delay(attempts - 1, rng, base=self.base, cap=self.cap, retry_after=retry_after)
