"""The series that the pods of an installation export, from the metrics that its modules register."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY

from monitoring.generate import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Series = tuple[str, dict[str, str]]
POOLS: Final = ("spot", "dedicated")
# Suffixes of the samples of a metric, by type; a histogram has a bucket for each bound, too.
SUFFIXES: Final = {"counter": ("_total",), "histogram": ("_count", "_sum"), "gauge": ("",)}
BOUNDS: Final = ("0.1", "0.5", "1.0", "5.0", "15.0", "60.0", "300.0", "900.0", "3600.0", "+Inf")
PROCESS: Final = ("python_", "process_", "lowtide_build")
WORKER: Final = ("worker_", "engine_", "queue_wait_", "replica_seconds", "cost")
ENDING: Final = ("requests_", "spot_interruptions", "dead_letters")
API: Final = ("api_",)
FRONT: Final = ("lowtide_cell_up",)
FUNCTIONS: Final = ("upload", "create-batch", "read", "cancel-batch")
VALUES: Final[Mapping[str, Sequence[str]]] = {
    "answer": ("200", "400", "404", "429", "500", "503", "timeout", "connection", "interrupted"),
    "currency": ("USD",),
    "generation": ("0", "1", "2"),
    "implementation": ("CPython",),
    "kind": ("http_503", "timeout", "connection"),
    "major": ("3",),
    "method": ("GET", "POST", "DELETE"),
    "minor": ("11",),
    "model": ("a", "b"),
    "outcome": ("Completed", "Failed", "Expired", "Cancelled"),
    "patchlevel": ("0",),
    "pool": POOLS,
    "quota": ("requests_per_day", "tokens_per_day", "spend_per_month"),
    "reason": ("requests", "tokens"),
    "route": ("/v1/files", "/v1/files/{id}", "/v1/batches", "/v1/batches/{id}", "/v1/uploads"),
    "status": ("200", "201", "400", "401", "404", "429", "500", "503"),
    "version": ("0.1.0",),
}


@dataclass(frozen=True)
class Installation:
    """Its size: `workers` is per fleet and pool, `pods` per function, `batches` are those at risk."""

    fleets: int
    workers: int
    tenants: int
    batches: int
    pods: int

    def series(self) -> Iterator[Series]:
        """Yield every series of all pods, with the labels that a scrape adds."""
        for fleet, pool in product(self._names("fleet"), POOLS):
            for pod in self._pods(f"infer-{pool}-{fleet}", self.workers):
                lane = {**pod, "fleet": fleet, "pool": pool}
                yield from self._exported(PROCESS + WORKER + ENDING, lane)
        for function in FUNCTIONS:
            for pod in self._pods(function, self.pods):
                yield from self._exported(PROCESS + API, pod)
        for pod in self._pods("schedule", 1):
            yield from self._exported(("",), pod, without=WORKER + API + FRONT)

    def _pods(self, function: str, count: int) -> Iterator[dict[str, str]]:
        for number in range(count):
            yield {"namespace": "lowtide", "function": function, "pod": f"{function}-{number}"}

    def _exported(
        self, prefixes: tuple[str, ...], pod: dict[str, str], without: tuple[str, ...] = ()
    ) -> Iterator[Series]:
        yield "up", pod
        for name, kind, labels in _metrics():
            if not name.startswith(prefixes) or name.startswith(without):
                continue
            # A batch has one tenant.
            known = pod | {"tenant": "tenant-0"} if "batch" in labels else pod
            choices = [[(label, value) for value in self._values(label, known)] for label in labels]
            for chosen in product(*choices):
                every = pod | dict(chosen)
                for suffix in SUFFIXES[kind]:
                    yield name + suffix, every
                if kind == "histogram":
                    for bound in BOUNDS:
                        yield f"{name}_bucket", every | {"le": bound}

    def _values(self, label: str, pod: dict[str, str]) -> Sequence[str]:
        if label in pod:
            return [pod[label]]
        if label in {"fleet", "tenant", "batch"}:
            return self._names(label)
        return VALUES[label]

    def _names(self, label: str) -> list[str]:
        counts = {"fleet": self.fleets, "tenant": self.tenants, "batch": self.batches}
        return [f"{label}-{number}" for number in range(counts[label])]


def _metrics() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return name, type and labels of every registered metric."""
    for path in sorted((HERE.parent / "lowtide").rglob("*.py")):
        if "prometheus_client" in path.read_text(encoding="utf-8"):
            importlib.import_module(".".join(path.relative_to(HERE.parent).with_suffix("").parts))
    return [
        (family.name, family.type, tuple(getattr(labelled, "_labelnames", ())))
        for collector in list(REGISTRY._collector_to_names)
        for family in getattr(collector, "describe", collector.collect)()
        for labelled in [collector if hasattr(collector, "_labelnames") else family]
    ]
