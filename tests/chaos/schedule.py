"""The schedule of a chaos run, drawn from the seed before the run starts."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FUNCTIONS = ("split", "finalize", "schedule", "upload", "create-batch", "cancel-batch", "read")
WORKERS = ("spot", "dedicated")
HELPERS = ("broker", "router", "portal")
LINKS = ("postgres", "broker", "store")
FLEETS = ("main", "annex")
ENGINES = ("one", "one", "all")
"""Two of three engine faults hit one worker's engine only, so that the others reveal it as faulty."""
GAP = 1.2
"""Mean seconds between two faults; several are active at any time."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault; `seconds` is the range of its duration, 0 for an instant.

    `needs_root` marks kinds that mount a file system.
    """

    name: str
    weight: int
    targets: tuple[str, ...] = ("",)
    seconds: tuple[float, float] = (0.0, 0.0)
    needs_root: bool = False

    @property
    def area(self) -> str:
        """The part of the name before the dot."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: its kind and target, its start (seconds into the run) and its duration.

    `pick` selects among the targets that exist at its start, such as workers or live batches.
    """

    number: int
    at: float
    kind: str
    target: str
    pick: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fault as plain values."""
        return asdict(self)


_STATUSES = ("500", "502", "503", "529", "429", "401", "403")
KINDS: tuple[Kind, ...] = (
    Kind("process.kill", 10, (*FUNCTIONS, *WORKERS, *WORKERS, *WORKERS, *HELPERS)),
    Kind("process.kill_child", 4, (*FUNCTIONS, *WORKERS)),
    Kind("process.stop", 7, (*FUNCTIONS, *WORKERS, *WORKERS, *HELPERS), (0.5, 9.0)),
    Kind("process.term", 4, (*FUNCTIONS, *WORKERS, *WORKERS)),
    Kind("workers.storm", 2),
    Kind("supervisor.kill", 1),
    Kind("postgres.kill", 2),
    Kind("postgres.kill_backend", 2),
    Kind("postgres.stop", 2, seconds=(0.5, 7.0)),
    Kind("postgres.stop_backend", 2, seconds=(0.5, 7.0)),
    Kind("postgres.terminate", 4),
    Kind("disk.full", 2, ("postgres", "store"), (1.0, 5.0), needs_root=True),
    Kind("store.kill", 1),
    Kind("store.stop", 2, seconds=(0.5, 7.0)),
    Kind("net.partition", 5, LINKS, (0.5, 8.0)),
    Kind("net.refuse", 4, LINKS, (0.3, 5.0)),
    Kind("net.delay", 4, LINKS, (1.0, 8.0)),
    Kind("net.reset", 5, LINKS),
    Kind("net.cut", 5, LINKS, (0.5, 4.0)),
    Kind("engine.down", 5, ENGINES, (0.5, 12.0)),
    Kind("engine.reset", 3, ENGINES, (0.5, 5.0)),
    Kind("engine.reset_mid", 3, ENGINES, (0.5, 5.0)),
    Kind("engine.slow", 4, ENGINES, (1.0, 8.0)),
    Kind("engine.hang", 3, ENGINES, (1.0, 8.0)),
    *(Kind(f"engine.{status}", 2, ENGINES, (0.5, 8.0)) for status in _STATUSES),
    Kind("engine.liar", 3, ("one",), (1.0, 8.0)),
    Kind("engine.503_retry_after", 2, ENGINES, (0.5, 6.0)),
    Kind("engine.429_retry_after", 2, ENGINES, (0.5, 6.0)),
    Kind("engine.429_absurd", 2, ENGINES, (0.5, 4.0)),
    Kind("engine.wrong_model", 2, ENGINES, (0.5, 6.0)),
    Kind("engine.garbage", 2, ENGINES, (0.5, 5.0)),
    Kind("engine.not_http", 2, ENGINES, (0.5, 5.0)),
    Kind("engine.error_in_200", 2, ENGINES, (0.5, 5.0)),
    Kind("engine.null_in_200", 2, ENGINES, (0.5, 5.0)),
    Kind("engine.huge", 2, ENGINES, (0.5, 3.0)),
    Kind("fleet.pause", 3, FLEETS, (1.0, 8.0)),
    Kind("fleet.down", 2, FLEETS, (1.0, 8.0)),
    Kind("fleet.500", 2, FLEETS, (1.0, 8.0)),
    Kind("object.missing", 2),
    Kind("object.corrupt", 2),
    Kind("object.truncated", 2),
    Kind("event.duplicate", 4, ("split", "finalize", "schedule", "broker")),
    Kind("event.lost", 4, seconds=(1.0, 4.0)),
    Kind("event.delayed", 3, seconds=(1.0, 20.0)),
    Kind("event.forged", 2, ("split", "finalize", "schedule", "broker")),
    Kind("input.bad", 3, ("json", "utf8", "duplicate", "url", "empty", "nul", "model")),
    Kind("batch.cancel", 4),
    Kind("batch.expire", 1),
    Kind("batch.poison", 3, ("500", "400")),
    Kind("data.parts", 3),
    Kind("data.delete", 3),
    Kind("data.outlive", 2),
    Kind("data.partitions", 2),
)
_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_of(fault: Fault) -> Kind:
    """Return the kind of a fault."""
    return _BY_NAME[fault.kind]


def make(
    seed: int, faults: int, *, gap: float = GAP, root: bool = True, only: Sequence[str] = ()
) -> list[Fault]:
    """Return a schedule that depends on the arguments only.

    `only` restricts the kinds to names with one of these prefixes.
    """
    rng = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    kinds = [
        kind
        for kind in KINDS
        if (root or not kind.needs_root) and (not only or kind.name.startswith(tuple(only)))
    ]
    if not kinds:
        raise ValueError(f"No kind of fault begins with {', '.join(only)}.")
    weights = [kind.weight for kind in kinds]
    # Each kind comes once before any repeats, so that a short run has most of them with any seed.
    order = rng.sample(kinds, len(kinds))[:faults]
    order += rng.choices(kinds, weights, k=faults - len(order))
    scheduled, at = [], 0.0
    for number, kind in enumerate(order, start=1):
        at += rng.expovariate(1 / gap)
        scheduled.append(
            Fault(
                number=number,
                at=round(at, 3),
                kind=kind.name,
                target=rng.choice(kind.targets),
                pick=rng.randrange(1 << 16),
                seconds=round(rng.uniform(*kind.seconds), 2),
            )
        )
    return scheduled


def counts(faults: Iterable[Fault]) -> dict[str, int]:
    """Return the number of faults by kind."""
    numbers: dict[str, int] = {}
    for fault in faults:
        numbers[fault.kind] = numbers.get(fault.kind, 0) + 1
    return dict(sorted(numbers.items()))


def as_line(fault: Fault) -> str:
    """Return a fault as a line of JSON."""
    return json.dumps(fault.to_dict())
