"""Where sightings are kept for everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.sightings import Glimpse


class SightingBook(Protocol):
    """One record of a part, however many processes see it."""

    def write(self, glimpses: Sequence[Glimpse]) -> None:
        """Note what was seen; what is known to be newer stays."""
        ...
