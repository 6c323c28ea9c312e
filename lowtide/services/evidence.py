"""Keeping an eye on the parts without waking them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.errors import LowtideError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from lowtide.domain.evidence import Evidence
    from lowtide.ports import EvidenceSource


@dataclass(frozen=True, slots=True)
class EvidenceSeen:
    """The last good reading, when it was taken by this process's clock, and what went wrong since."""

    evidence: Evidence | None = None
    looked_at: datetime | None = None
    problem: str | None = None


class EvidenceWatch:
    """Reads evidence; `look` never raises what a failing database raises."""

    def __init__(self, source: EvidenceSource, *, clock: Callable[[], datetime]) -> None:
        self._source = source
        self._clock = clock
        self._seen = EvidenceSeen()

    @property
    def seen(self) -> EvidenceSeen:
        """The last that was seen."""
        return self._seen

    def look(self) -> None:
        """Read the database."""
        try:
            self._seen = EvidenceSeen(self._source.read(), self._clock())
        except LowtideError as error:
            self._seen = EvidenceSeen(self._seen.evidence, self._seen.looked_at, error.message)
