"""When the broker tries again: pure, as Knative's delivery spec means it.

Source: Knative eventing `pkg/kncloudevents/retries.go`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.local import durations

if TYPE_CHECKING:
    from lowtide.local.manifests import Delivery

_RETRIED_BELOW_500 = frozenset({404, 408, 409, 429})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `retries` more attempts; `delay` and `timeout` in seconds."""

    retries: int
    delay: float
    exponential: bool
    timeout: float

    def wait(self, attempt: int) -> float | None:
        """Return the seconds before the retry that follows `attempt` (from 0); None for none."""
        if attempt >= self.retries:
            return None
        return self.delay * (2**attempt if self.exponential else attempt)


def retry_policy(delivery: Delivery) -> RetryPolicy:
    """Return the policy of a delivery spec; raises BadManifest for a bad duration."""
    return RetryPolicy(
        retries=delivery.retry,
        delay=durations.parse(delivery.backoff_delay),
        exponential=delivery.backoff_policy == "exponential",
        timeout=durations.parse(delivery.timeout),
    )


def is_retried(status: int | None) -> bool:
    """Whether an answer, or None for no answer, is worth another attempt."""
    return status is None or status >= 500 or status in _RETRIED_BELOW_500
