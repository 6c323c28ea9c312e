"""One chaos run, from an empty folder to a verdict."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.chaos import schedule
from tests.chaos.api import Api
from tests.chaos.disk import can_mount
from tests.chaos.faults import Injector
from tests.chaos.observer import Findings, Observer
from tests.chaos.system import System
from tests.chaos.verdict import Verdict, judge, wait_until_over
from tests.chaos.workload import WEIGHTS, Tenant, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SETTINGS = {
    "LOWTIDE_LEASE_DURATION": "5",
    "LOWTIDE_DATABASE_TIMEOUT": "5",
    "LOWTIDE_STALLED_AFTER": "5",
    "LOWTIDE_WORKER_POLL_CAP": "1",
    "LOWTIDE_WORKER_CONCURRENCY": "16",
    "LOWTIDE_ENGINE_TIMEOUT": "6",
    "LOWTIDE_CANCEL_GRACE": "3",
}
"""What makes a stack notice soon that something is gone: nothing that makes it more patient."""
_AT_ONCE = 24
_SENDERS = {"object", "event", "input", "batch"}


@dataclass(frozen=True)
class Plan:
    """What a run is to do. `bound` is in seconds: how soon all must be over after the last fault.

    `settings` are further ones of the stack.
    """

    seed: int
    faults: int
    gap: float = schedule.GAP
    size: tuple[int, int] = (50, 250)
    bound: float = 420.0
    only: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False

    def schedule(self) -> list[schedule.Fault]:
        """Return the faults."""
        return schedule.make(self.seed, self.faults, gap=self.gap, root=can_mount(), only=self.only)


@dataclass
class Report:
    """What came of a run; times in seconds."""

    seed: int
    faults: int
    injected: dict[str, int] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    settle_seconds: float = 0.0
    batches: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    failed_by_cause: dict[str, int] = field(default_factory=dict)
    innocent: int = 0
    executions: int = 0
    samples: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    violations: list[dict[str, Any]] = field(default_factory=list)
    folder: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether every invariant held."""
        return not self.violations and self.innocent == 0

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps({**asdict(self), "clean": self.is_clean})


def run(plan: Plan, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Run it; `progress` gets a line every few seconds."""
    system = System({**SETTINGS, **plan.settings})
    report = Report(plan.seed, plan.faults, folder=str(system.folder))
    faults = plan.schedule()
    (system.folder / "schedule.jsonl").write_text(
        "".join(schedule.as_line(fault) + "\n" for fault in faults)
    )
    keep = True
    try:
        progress(f"starting in {system.folder}")
        system.start(disks=can_mount())
        keys = {name: system.create_tenant(name, weight) for name, weight in WEIGHTS.items()}
        findings = Findings()
        tenants = [
            Tenant(name, Api(system.stack.base_url, key, findings.report))
            for name, key in keys.items()
        ]
        workload = Workload(tenants, plan.seed, plan.size, findings.report)
        observer = Observer(workload, system.stack, findings)
        injector = Injector(system, workload, findings, system.folder / "injected.jsonl")
        workload.start()
        observer.start()

        def line(what: str = "") -> None:
            live, all_ = len(workload.live()), len(workload.all())
            progress(
                f"{time.monotonic() - findings.began:6.0f} s  faults {injector.tallied}/{len(faults)}"
                f"  batches {all_ - live} over, {live} live  violations {len(findings.all)}  {what}"
            )

        _strike(faults, injector, findings, line)
        workload.stop()
        system.heal()
        line("all faults are over")
        report.settle_seconds = _settle(workload, findings, plan.bound, line)
        observer.stop()
        _fill(
            report,
            injector,
            observer,
            findings,
            judge(workload, system.stack, observer, findings, system.executions),
            tenants,
        )
        keep = plan.keep or not report.is_clean
    finally:
        system.stop(keep=keep)
    return report


def _strike(
    faults: Sequence[schedule.Fault],
    injector: Injector,
    findings: Findings,
    line: Callable[[str], None],
) -> None:
    told = 0.0
    # Faults that use the API wait as long as it is away, and must not keep the others waiting.
    with ThreadPoolExecutor(_AT_ONCE) as threads, ThreadPoolExecutor(_AT_ONCE) as senders:
        for fault in faults:
            while (wait := findings.began + fault.at - time.monotonic()) > 0:
                time.sleep(min(wait, 1.0))
            area = schedule.kind_of(fault).area
            (senders if area in _SENDERS else threads).submit(injector.inject, fault)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                line(fault.kind)
        while injector.tallied < len(faults):
            time.sleep(0.2)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                line("the last faults end")
    injector.retry_missed()


def _settle(
    workload: Workload, findings: Findings, bound: float, line: Callable[[str], None]
) -> float:
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(wait_until_over, workload, findings, bound)
        told = time.monotonic()
        while not waiting.done():
            time.sleep(0.2)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                line("waiting for the end of every batch")
        return round(waiting.result(), 1)


def _fill(
    report: Report,
    injector: Injector,
    observer: Observer,
    findings: Findings,
    verdict: Verdict,
    tenants: Sequence[Tenant],
) -> None:
    report.injected = schedule.counts(injector.done)
    report.missed = {f"{fault.number} {fault.kind}": why for fault, why in injector.missed}
    report.seconds = round(time.monotonic() - findings.began, 1)
    report.batches = dict(sorted(verdict.batches.items()))
    report.requests = dict(verdict.requests)
    report.failed_by_cause = dict(verdict.failed)
    report.innocent = verdict.innocent
    report.executions = verdict.executions
    report.samples = observer.samples
    statuses = sum((tenant.api.statuses for tenant in tenants), Counter[int]())
    report.answers = {str(status): number for status, number in sorted(statuses.items())}
    report.violations = [asdict(one) for one in findings.all]
    for tenant in tenants:
        tenant.api.close()
