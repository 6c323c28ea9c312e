"""All findings of a moment, from what the one poller has seen: a page asks nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain import findings
from lowtide.domain.attention import Concern
from lowtide.domain.evidence import scales_of
from lowtide.domain.findings import Condition, Finding

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.evidence import Evidence
    from lowtide.services.evidence import EvidenceSeen
    from lowtide.services.operations import OperationsSeen


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """How the parts are; `looked_at` is when the evidence was read."""

    looked_at: datetime
    evidence: Evidence
    api: Finding
    broker: Finding
    functions: tuple[Finding, ...]
    workers: tuple[Finding, ...]
    engines: tuple[Finding, ...]
    autoscaler: tuple[Finding, ...]

    @property
    def parts(self) -> tuple[Finding, ...]:
        """All of them."""
        return (
            self.broker,
            *self.functions,
            *self.workers,
            *self.engines,
            *self.autoscaler,
        )

    def count(self, condition: Condition) -> int:
        """How many parts are so."""
        return sum(part.condition is condition for part in self.parts)

    def concerns(self) -> tuple[Concern, ...]:
        """What the readings of queues do not tell already."""
        return tuple(
            Concern(f"{part.part}: {part.word.lower()}, {part.detail}", "/health")
            for part in (*self.functions, *self.engines, *self.autoscaler)
            if part.condition is Condition.BAD and part.part != "schedule"
        )


def diagnose(seen: EvidenceSeen, operations: OperationsSeen) -> Diagnosis | None:
    """Return what the last readings say; None before the first."""
    evidence, reading = seen.evidence, operations.reading
    if evidence is None or seen.looked_at is None:
        return None
    return Diagnosis(
        looked_at=seen.looked_at,
        evidence=evidence,
        api=findings.api(evidence),
        broker=findings.broker(evidence, reading),
        functions=findings.functions(evidence, reading),
        workers=findings.workers(evidence, reading),
        engines=findings.engines(evidence),
        autoscaler=findings.autoscaler(scales_of(operations.samples), evidence.at),
    )
