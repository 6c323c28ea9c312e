"""Where events go, and where they wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.events import Event


class EventSink(Protocol):
    """Where CloudEvents go."""

    def publish(self, event: Event) -> bool:
        """Send one event; return whether the sink accepted it. Never raises."""
        ...


class Outbox(Protocol):
    """CloudEvents that are recorded but not yet accepted by the sink."""

    def waiting(self, limit: int, older_than: float) -> Sequence[Event]:
        """Return events recorded more than `older_than` seconds ago, oldest first."""
        ...

    def forget(self, event: Event) -> None:
        """Drop an event that was accepted."""
        ...
