"""ISO 8601 durations, as Knative's delivery specs write them."""

from __future__ import annotations

import re

from lowtide.local.errors import BadManifest

_SHAPE = re.compile(
    r"P(?:(?P<d>\d+(?:\.\d+)?)D)?"
    r"(?:T(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?"
)
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse(text: str) -> float:
    """Return the seconds of `PT0.5S`, `PT10M` or `P1DT2H`; raises BadManifest for other shapes.

    Years, months and weeks are refused: no retry waits that long.
    """
    match = _SHAPE.fullmatch(text)
    if match is None or not any(match.groupdict().values()):
        raise BadManifest(f"{text!r} is not an ISO 8601 duration of days or less, such as PT0.5S")
    return sum(float(value) * _SECONDS[unit] for unit, value in match.groupdict().items() if value)
