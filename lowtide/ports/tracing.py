"""Where work is told about as it happens: spans of a trace, and ids for the log."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from lowtide.domain.traces import TraceContext

Attributes = Mapping[str, str | int | float | bool]

BATCH: Final = "lowtide.batch.id"
TENANT: Final = "lowtide.tenant.id"
REQUEST: Final = "lowtide.request.id"


class SpanKind(StrEnum):
    """What a span stands for, in OpenTelemetry's words."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"
    PRODUCER = "producer"
    CONSUMER = "consumer"


class Span(Protocol):
    """Work under way. Attributes hold ids, counts and kinds, never what users wrote."""

    @property
    def context(self) -> TraceContext | None:
        """Where what this work causes goes on; None outside of any trace."""
        ...

    def note(self, attributes: Attributes) -> None:
        """Add attributes."""
        ...

    def fail(self, kind: str) -> None:
        """Mark the work as failed; `kind` is the class of the failure."""
        ...

    def end(self) -> None:
        """Tell that the work is over. Never blocks, never raises."""
        ...


class Tracer(Protocol):
    """Starts spans."""

    @property
    def is_on(self) -> bool:
        """Whether anybody is told."""
        ...

    def current(self) -> TraceContext | None:
        """Return where the caller is."""
        ...

    def start(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        attributes: Attributes | None = None,
    ) -> Span:
        """Start a span that its caller ends; without `parent` it continues where the caller is."""
        ...

    def inside(self, span: Span) -> AbstractContextManager[None]:
        """Let a block's spans and log lines belong to a span."""
        ...

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        attributes: Attributes | None = None,
    ) -> AbstractContextManager[Span]:
        """Run a block as a span; what it raises marks the span as failed and goes on."""
        ...

    def close(self, seconds: float) -> None:
        """Send what is left, for at most `seconds`."""
        ...
