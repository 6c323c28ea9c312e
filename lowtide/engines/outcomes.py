"""What an engine says of a request, and when a request that failed is tried again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from lowtide.core.durations import retry_delay

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response; the last two are parts of the first two."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """The engine answered over HTTP; `body` is one JSON value in UTF-8, exactly as it came.

    It is never decoded whole: a single emoji makes Python hold text in four bytes a character.

    `status_code` is that of the error where a 2xx answer holds one. `retry_after` is in seconds.
    `lacks_model`: the error says that the engine does not serve the request's model; `out_of_quota`:
    that its account may spend no more; `refuses_content`: that a 403 is about the request's words.
    """

    status_code: int
    body: bytes
    request_id: str = ""
    usage: Usage = Usage()
    retry_after: float | None = None
    lacks_model: bool = False
    out_of_quota: bool = False
    refuses_content: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code < 300


class NoAnswer(StrEnum):
    """Why there is no usable answer; the value is the error code of a request that ends with it.

    The first three mean that no byte of an answer came; whether the request was at fault cannot be
    seen from `TIMEOUT`, `LOST`, `GARBAGE` and `FAULT` alone. `TOO_LARGE` and `UNSENDABLE` would be
    the same again.
    """

    UNREACHED = "connection_error"
    DNS = "dns_error"
    TLS = "tls_error"
    TIMEOUT = "timeout"
    LOST = "connection_lost"
    GARBAGE = "invalid_response"
    FAULT = "engine_error"
    TOO_LARGE = "response_too_large"
    UNSENDABLE = "request_not_sendable"


PERMANENT_CODES = frozenset({NoAnswer.TOO_LARGE, NoAnswer.UNSENDABLE})


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The engine gave no usable answer. `code` is a NoAnswer, or an engine's own word for one."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The capacity under the request went away; never the request's fault."""

    reason: str


@dataclass(frozen=True, slots=True)
class BadInput:
    """The request could not be read from its input object: it is missing or not what was uploaded."""

    code: str
    message: str


Outcome = Answered | Unanswered | Interrupted | BadInput


def is_success(outcome: Outcome) -> bool:
    """Whether the engine did what it was asked."""
    return isinstance(outcome, Answered) and outcome.succeeded


TRANSIENT_STATUSES = frozenset({408, 409, 425, 429}) | frozenset(range(500, 600))


@dataclass(frozen=True, slots=True)
class Window:
    """The time that a request has: `left` seconds until its deadline, of which a run takes `run`."""

    left: float = math.inf
    run: float = 0.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon a request that failed is tried again; times in seconds.

    No wait is longer than `cap`, nor so long that the tries after it would end past the deadline.
    """

    max_attempts: int = 5
    base: float = 8.0
    cap: float = 120.0

    @staticmethod
    def is_transient(outcome: Answered | Unanswered) -> bool:
        """Whether the same request may succeed later."""
        if isinstance(outcome, Unanswered):
            return outcome.code not in PERMANENT_CODES
        return outcome.status_code in TRANSIENT_STATUSES

    def delay(
        self,
        outcome: Answered | Unanswered,
        attempts: int,
        rng: Random,
        window: Window = Window(),
    ) -> float | None:
        """Return the seconds until the next attempt, or None when this failure is the last.

        `attempts` counts the attempt that just failed.
        """
        if not self.is_transient(outcome) or attempts >= self.max_attempts:
            return None
        plain = retry_delay(attempts - 1, rng, base=self.base, cap=self.cap)
        retry_after = outcome.retry_after if isinstance(outcome, Answered) else None
        return self.bounded(max(plain, retry_after or 0.0), window, self.max_attempts - attempts)

    def bounded(self, seconds: float, window: Window, tries: int = 1) -> float:
        """Return a wait that leaves room for `tries`, each with a wait and a run."""
        return max(0.0, min(seconds, self.cap, window.left / tries - window.run))
