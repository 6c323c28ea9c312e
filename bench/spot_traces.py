"""Recorded spot markets: files of the available replicas over time."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded market: the available replicas, every `gap` seconds."""

    name: str
    gap: float
    places: Sequence[int]

    def scaled_to(self, replicas: int) -> Trace:
        """Return the market, scaled up if its maximum is below `replicas`."""
        most = max(self.places)
        if most == 0 or most >= replicas:
            return self
        places = [round(each * replicas / most) for each in self.places]
        return Trace(self.name, self.gap, places)

    def cut(self, start: int, length: int) -> list[int]:
        """Return `length` points; the market repeats after its end."""
        repeats = -(-(start + length) // len(self.places))
        return (list(self.places) * repeats)[start : start + length]


def read_traces(folder: Path) -> list[Trace]:
    """Return every trace in or below a directory; exits with an error if one is invalid."""
    traces = []
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            gap = float(content["metadata"]["gap_seconds"])
            places = [max(0, int(each)) for each in content["data"]]
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"{path}: not a spot trace: {error!r}")
        if gap <= 0 or not places:
            sys.exit(f"{path}: not a spot trace: no points, or no time between them.")
        traces.append(Trace(str(path.relative_to(folder)), gap, places))
    if not traces:
        sys.exit(f"No *.json under {folder}.")
    return traces
