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

    def due(self, limit: int) -> Sequence[Event]:
        """Return up to `limit` events whose next attempt is due, and put off the one behind it."""
        ...

    def forget(self, event: Event) -> None:
        """Drop an event that was accepted."""
        ...
