"""The counter of requests by outcome, for every process that ends some."""

from __future__ import annotations

from prometheus_client import Counter

from lowtide.batches.model import RequestStatus

_ENDED = Counter(
    "requests_ended_total",
    "Requests that ended, by outcome: Completed, Failed, Expired or Cancelled.",
    ["outcome"],
)
# Initialized to 0, so that the first scrape shows an increase.
for _outcome in (
    RequestStatus.COMPLETED,
    RequestStatus.FAILED,
    RequestStatus.EXPIRED,
    RequestStatus.CANCELLED,
):
    _ENDED.labels(_outcome.value)


def requests_ended(outcome: RequestStatus, requests: int) -> None:
    """Count requests that ended."""
    _ENDED.labels(outcome.value).inc(requests)
