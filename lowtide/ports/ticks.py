"""What the scheduler needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.situations import Swept


class Ticks(Protocol):
    """What one tick of the scheduler reads and changes. Everything may run twice at once."""

    def sweep(self, *, cancel_grace: float, stalled_after: float) -> Swept:
        """Give expired leases back, end what is due, announce again what stalled.

        Times in seconds.
        """
        ...

    def strays(self, limit: int) -> Sequence[str]:
        """Forget expired files; return keys of objects that belong to no file (any more)."""
        ...

    def forget_strays(self, keys: Sequence[str]) -> None:
        """Note that these objects are gone."""
        ...

    def trim_signed_out(self) -> int:
        """Drop signed-out sessions of the portal that have ended anyway; return how many."""
        ...

    def trim_audit(self, *, kept: float, limit: int) -> int:
        """Drop up to `limit` actions that are older than `kept` seconds; return how many."""
        ...
