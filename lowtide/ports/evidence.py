"""Readings of what the database tells of the parts around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lowtide.domain.evidence import Evidence


class EvidenceSource(Protocol):
    """Where evidence comes from."""

    def read(self) -> Evidence:
        """Return what there is to know of the parts; raises Unavailable."""
        ...
