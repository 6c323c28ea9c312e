"""Outcomes of engine requests, and the retry policy."""

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
    """Tokens of one response; cached tokens are part of the input, reasoning of the output."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """An HTTP answer of the engine; `body` is one JSON value in UTF-8, as received.

    The body is never decoded whole: one emoji makes Python store text in four bytes per character.

    `status_code` is the error's if a 2xx answer contains one. `retry_after` is in seconds.
    `lacks_model`: the engine does not serve the request's model; `out_of_quota`: its account has no
    quota left; `refuses_content`: a 403 is about the request's content.
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
        """True if the status is 2xx."""
        return 200 <= self.status_code < 300


class NoAnswer(StrEnum):
    """Reasons for having no usable answer; the value is the error code of the failed request.

    With the first three, no byte of an answer arrived. `TIMEOUT`, `LOST`, `GARBAGE` and `FAULT`
    alone do not tell whether the request is at fault. `TOO_LARGE` and `UNSENDABLE` would recur.
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
    """An outcome without a usable answer; `code` is a NoAnswer or an engine's own code."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A loss of the capacity under the request; never the request's fault."""

    reason: str


@dataclass(frozen=True, slots=True)
class BadInput:
    """A request that cannot be read: its input object is missing or differs from the upload."""

    code: str
    message: str


Outcome = Answered | Unanswered | Interrupted | BadInput


def is_success(outcome: Outcome) -> bool:
    """Return whether the engine answered successfully."""
    return isinstance(outcome, Answered) and outcome.succeeded


TRANSIENT_STATUSES = frozenset({408, 409, 425, 429}) | frozenset(range(500, 600))


@dataclass(frozen=True, slots=True)
class Window:
    """The time of a request: `left` seconds until its deadline, of which one run takes `run`."""

    left: float = math.inf
    run: float = 0.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits on the attempts of a request and the waits between them; times in seconds.

    No wait exceeds `cap`, or is so long that the remaining attempts would end past the deadline.
    """

    max_attempts: int = 5
    base: float = 8.0
    cap: float = 120.0

    @staticmethod
    def is_transient(outcome: Answered | Unanswered) -> bool:
        """Return whether the same request may succeed later."""
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
        """Return the seconds until the next attempt; None after the last one.

        `attempts` includes the attempt that just failed.
        """
        if not self.is_transient(outcome) or attempts >= self.max_attempts:
            return None
        backoff = retry_delay(attempts - 1, rng, base=self.base, cap=self.cap)
        retry_after = outcome.retry_after if isinstance(outcome, Answered) else None
        return self.bounded(max(backoff, retry_after or 0.0), window, self.max_attempts - attempts)

    def bounded(self, seconds: float, window: Window, tries: int = 1) -> float:
        """Return a wait that leaves time for `tries`, each with a wait and a run."""
        return max(0.0, min(seconds, self.cap, window.left / tries - window.run))
