"""Readings of how the installation works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lowtide.domain.operations import Operations


class OperationsSource(Protocol):
    """Where readings of operations come from."""

    def read(self) -> Operations:
        """Return how all tenants' queues and the pools stand; raises Unavailable."""
        ...
