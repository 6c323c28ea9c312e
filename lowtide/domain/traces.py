"""A place in a trace, as W3C Trace Context writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span that others may continue; `state` is the vendors' own, passed on as it came."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The header and event attribute of this name."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_trace(traceparent: str | None, tracestate: str | None = None) -> TraceContext | None:
    """Return the context of a traceparent, or None when there is none that is valid.

    A version above 00 may have more fields, which are ignored, as the recommendation asks for.
    """
    match = _TRACEPARENT.fullmatch((traceparent or "").strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    state = (tracestate or "").strip()
    if _TRACESTATE.fullmatch(state) is None:
        state = ""
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1), state)
