"""Tracing of a worker: one span per claimed set, and one per batch in it.

A set may mix batches, so its span continues none of their traces and links to all. A batch's share
of the set is a span of the batch's trace, which thus shows the workers that ran its requests, and
the outcomes. There is never a span per request.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from lowtide.core.ids import format_batch_id
from lowtide.queue.claims import Finished, Returned
from lowtide.telemetry.tracing import BATCH, TENANT, SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.core.ids import BatchId
    from lowtide.core.pools import Pool
    from lowtide.queue.claims import Claim
    from lowtide.telemetry.tracing import Span, TraceContext, Tracer


_log = logging.getLogger(__name__)
# Names from OpenTelemetry's semantic conventions for generative AI.
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
}


@dataclass(slots=True)
class _Share:
    """A batch's requests in a set, and their outcomes so far."""

    span: Span
    lines: int
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    interrupted: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, requests: Sequence[Finished | Returned]) -> None:
        finished = [request for request in requests if isinstance(request, Finished)]
        succeeded = sum(request.succeeded for request in finished)
        self.succeeded += succeeded
        self.failed += len(finished) - succeeded
        self.input_tokens += sum(request.usage.input_tokens for request in finished)
        self.output_tokens += sum(request.usage.output_tokens for request in finished)
        for request in requests:
            if isinstance(request, Returned):
                self.interrupted += request.interrupted
                self.retried += request.failed

    def counts(self) -> dict[str, int]:
        outcomes = {
            "succeeded": self.succeeded,
            "failed": self.failed,
            "retried": self.retried,
            "interrupted": self.interrupted,
        }
        return {**outcomes, "unfinished": self.lines - sum(outcomes.values())}


class SetSpans:
    """The spans of one claimed set. Every request passes through `add` once settled or released."""

    def __init__(self, tracer: Tracer, pool: Pool, claims: Sequence[Claim]) -> None:
        claims_by_batch: dict[BatchId, list[Claim]] = {}
        for batch, batch_claims in groupby(claims, key=attrgetter("batch")):
            claims_by_batch.setdefault(batch, []).extend(batch_claims)
        first_claims = {batch: batch_claims[0] for batch, batch_claims in claims_by_batch.items()}
        attributes = {"lowtide.pool": pool.value}
        self._tracer = tracer
        self._span = tracer.start(
            f"infer set {pool}",
            kind=SpanKind.CONSUMER,
            links=[claim.trace for claim in first_claims.values() if claim.trace is not None],
            attributes=attributes | {"messaging.batch.message_count": len(claims)},
        )
        set_context = self._span.context
        self._shares = {
            batch: _Share(
                tracer.start(
                    f"infer {pool}",
                    parent=claim.trace,
                    links=[set_context] if set_context is not None else [],
                    attributes={
                        **attributes,
                        BATCH: format_batch_id(batch),
                        TENANT: str(claim.tenant or ""),
                        "gen_ai.operation.name": _OPERATIONS.get(claim.endpoint, claim.endpoint),
                    },
                ),
                lines=len(claims_by_batch[batch]),
            )
            for batch, claim in first_claims.items()
        }
        # Most sets have one batch; a lookup by UUID for each request would dominate the cost.
        self._single_share = next(iter(self._shares.values())) if len(self._shares) == 1 else None

    def trace_of(self, batch: BatchId) -> TraceContext | None:
        """Return the context that the engine's work on a batch's requests continues."""
        return (self._single_share or self._shares[batch]).span.context

    def add(self, settled: Sequence[Finished | Returned]) -> None:
        """Count requests as they are settled or released."""
        if self._single_share is not None:
            self._single_share.add(settled)
            return
        for request in settled:
            self._shares[request.batch].add([request])

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run a block as the work on the set; requests not counted by its end are unfinished."""
        # With a single batch, log records carry that batch's trace.
        span = self._span if self._single_share is None else self._single_share.span
        try:
            with self._tracer.inside(span):
                yield
        finally:
            for share in self._shares.values():
                self._end(share)
            self._span.end()

    def _end(self, share: _Share) -> None:
        counts = share.counts()
        if share.succeeded < share.lines:
            with self._tracer.inside(share.span):
                _log.info("lines.unsuccessful", extra={"lines": share.lines, **counts})
        share.span.note(
            {
                "messaging.batch.message_count": share.lines,
                **{f"lowtide.lines.{name}": count for name, count in counts.items()},
                "gen_ai.usage.input_tokens": share.input_tokens,
                "gen_ai.usage.output_tokens": share.output_tokens,
            }
        )
        share.span.end()
