"""Fault plans of the simulated engine.

    [WHO:]KIND[=VALUE][@FROM-TO[/PERIOD]][:SHARE], …

WHO is `spot`, `dedicated`, a share of the workers (`1/4`) or a worker's name with `*` as wildcard.
KIND is a status from 400 to 599 or a value of `Kind`. FROM and TO are seconds since the worker
started, or Unix time from 1,000,000,000 on; with PERIOD they are seconds within each such period of
Unix time. SHARE is the share of requests affected.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final
from zlib import crc32

_UNIX_TIME: Final = 1_000_000_000
_NUMBER: Final = r"\d+(?:\.\d+)?"
_FAULT: Final = re.compile(
    rf"(?:(?P<who>[a-z*][\w*.-]*|\d+/\d+):)?(?P<kind>[a-z]+|\d{{3}})(?:=(?P<value>{_NUMBER}))?"
    rf"(?:@(?P<start>{_NUMBER})-(?P<end>{_NUMBER})?(?:/(?P<period>{_NUMBER}))?)?"
    rf"(?::(?P<share>{_NUMBER}))?"
)
_FORM: Final = "[WHO:]KIND[=VALUE][@FROM-TO[/PERIOD]][:SHARE]"
_ORDINAL: Final = re.compile(r"-(\d+)$")


class Kind(StrEnum):
    """Kinds of faults; `VALUE` is in seconds for `slow`, in bytes for `huge`."""

    DOWN = "down"
    SLOW = "slow"
    HANG = "hang"
    GARBAGE = "garbage"
    HUGE = "huge"
    ERROR = "error"
    POISON = "poison"
    STATUS = "status"


_NAMED_KINDS: Final = frozenset(Kind) - {Kind.STATUS}
_WITH_VALUE: Final = frozenset({Kind.SLOW, Kind.HUGE, Kind.STATUS})


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker, by pool and name."""

    pool: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A planned fault; `value` is a status's Retry-After in seconds, else defined by the kind."""

    kind: Kind
    status: int = 0
    value: float | None = None
    who: str = "*"
    start: float = 0.0
    end: float = math.inf
    period: float | None = None
    share: float = 1.0

    def concerns(self, worker: Worker) -> bool:
        """Return True if the fault applies to a worker."""
        count, slash, total = self.who.partition("/")
        if slash:
            return _worker_number(worker.name) % int(total) < int(count)
        return self.who == worker.pool or fnmatchcase(worker.name, self.who)

    def wait(self, now: float, started: float) -> float:
        """Return the seconds until the fault starts; 0 while it is active, infinite afterwards.

        `now` and `started`, the worker's start, are in Unix seconds.
        """
        if self.period is not None:
            offset = now % self.period
            if self.start <= offset < self.end:
                return 0.0
            return (self.start - offset) % self.period
        origin = 0.0 if self.start >= _UNIX_TIME else started
        if now - origin >= self.end:
            return math.inf
        return max(0.0, self.start - (now - origin))


def parse_faults(text: str) -> tuple[PlannedFault, ...]:
    """Parse a fault plan; raises ValueError that names the invalid part."""
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def _parse(part: str) -> PlannedFault:
    match = _FAULT.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} does not match {_FORM}")
    groups = match.groupdict()
    kind, status = _kind(part, groups["kind"])
    fault = PlannedFault(
        kind,
        status,
        value=None if groups["value"] is None else float(groups["value"]),
        who=groups["who"] or "*",
        start=float(groups["start"] or 0),
        end=float(groups["end"] or math.inf),
        period=None if groups["period"] is None else float(groups["period"]),
        share=float(groups["share"] or 1),
    )
    if problem := _problem(fault):
        raise ValueError(f"{part!r}: {problem}")
    return fault


def _kind(part: str, name: str) -> tuple[Kind, int]:
    if name.isdigit():
        if not 400 <= int(name) <= 599:
            raise ValueError(f"{part!r}: the status must be from 400 to 599")
        return Kind.STATUS, int(name)
    if name not in _NAMED_KINDS:
        names = ", ".join(kind for kind in Kind if kind in _NAMED_KINDS)
        raise ValueError(f"{part!r}: {name} is neither a status nor one of {names}")
    return Kind(name), 0


def _problem(fault: PlannedFault) -> str | None:
    """Return the problem with a fault, or None."""
    count, slash, total = fault.who.partition("/")
    problems = {
        f"{fault.who} is not a share of workers, such as 1/4": (
            slash and not 1 <= int(count) <= int(total)
        ),
        f"{fault.who} is a kind of fault, not a worker's name": fault.who in _NAMED_KINDS,
        f"{fault.kind} takes no value": fault.value is not None and fault.kind not in _WITH_VALUE,
        "the window ends before it starts": fault.start >= fault.end,
        "the window ends after its period": fault.period is not None and fault.end > fault.period,
        "the share must be above 0 and at most 1": not 0 < fault.share <= 1,
    }
    return next((text for text, applies in problems.items() if applies), None)


def _worker_number(name: str) -> int:
    """Return a worker's ordinal, so that shares of few workers are exact, or its name's hash."""
    ordinal = _ORDINAL.search(name)
    return int(ordinal[1]) - 1 if ordinal else crc32(name.encode())
