"""A chaos run from an empty folder to its report."""

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
    "LOWTIDE_SEGMENT_LINES": "40",
}
"""Settings that make a stack detect failures sooner; none makes it more patient.

Batches have several segments.
"""
_AT_ONCE = 24
_SENDERS = {"fleet", "object", "event", "input", "batch", "data"}


@dataclass(frozen=True)
class Plan:
    """The parameters of a run; `bound` limits the seconds from the last fault to the last batch's end.

    `settings` are additional settings of the stack.
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
        """Return the faults of this plan."""
        return schedule.make(self.seed, self.faults, gap=self.gap, root=can_mount(), only=self.only)


@dataclass
class Report:
    """The result of a run; times in seconds."""

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
        """True if every invariant held."""
        return not self.violations and self.innocent == 0

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps({**asdict(self), "clean": self.is_clean})


def run(plan: Plan, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Run a plan; `progress` gets a line every few seconds."""
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

        def show(step: str = "") -> None:
            live, all_ = len(workload.live()), len(workload.all())
            progress(
                f"{time.monotonic() - findings.began:6.0f} s  faults {injector.processed}/{len(faults)}"
                f"  batches {all_ - live} over, {live} live  violations {len(findings.all)}  {step}"
            )

        _inject_all(faults, injector, findings, show)
        workload.stop()
        system.heal()
        show("all faults are over")
        report.settle_seconds = _wait_for_batches(workload, findings, plan.bound, show)
        observer.stop()
        _fill(
            report,
            injector,
            observer,
            findings,
            judge(workload, system, observer, findings),
            tenants,
        )
        keep = plan.keep or not report.is_clean
    finally:
        system.stop(keep=keep)
    return report


def _inject_all(
    faults: Sequence[schedule.Fault],
    injector: Injector,
    findings: Findings,
    show: Callable[[str], None],
) -> None:
    shown_at = 0.0
    # Faults that use the API block while it is down, and must not delay the others.
    with ThreadPoolExecutor(_AT_ONCE) as threads, ThreadPoolExecutor(_AT_ONCE) as senders:
        for fault in faults:
            while (wait := findings.began + fault.at - time.monotonic()) > 0:
                time.sleep(min(wait, 1.0))
            area = schedule.kind_of(fault).area
            (senders if area in _SENDERS else threads).submit(injector.inject, fault)
            if time.monotonic() - shown_at > 5:
                shown_at = time.monotonic()
                show(fault.kind)
        while injector.processed < len(faults):
            time.sleep(0.2)
            if time.monotonic() - shown_at > 5:
                shown_at = time.monotonic()
                show("waiting for the last faults")
    injector.retry_missed()


def _wait_for_batches(
    workload: Workload, findings: Findings, bound: float, show: Callable[[str], None]
) -> float:
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(wait_until_over, workload, findings, bound)
        shown_at = time.monotonic()
        while not waiting.done():
            time.sleep(0.2)
            if time.monotonic() - shown_at > 5:
                shown_at = time.monotonic()
                show("waiting for the end of every batch")
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
