"""What lies ahead, over all tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lowtide.domain.outlook import Outlook


class OutlookSource(Protocol):
    """Where outlooks come from."""

    def look(self) -> Outlook:
        """Return the open lines of all tenants and the workers that run."""
        ...
