"""The command `python -m tests.chaos --seed 1 --faults 1000`; exits with 1 if an invariant breaks."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tests.chaos import schedule
from tests.chaos.disk import can_mount
from tests.chaos.run import Plan, Report, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OUT = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Run chaos and print the report."""
    options = _arguments()
    plan = Plan(
        options.seed,
        options.faults,
        gap=options.gap,
        bound=options.bound,
        only=tuple(options.only),
        settings=dict(options.setting),
        keep=options.keep,
    )
    faults = plan.schedule()
    if options.schedule:
        with options.schedule.open("w") as file:
            for fault in faults:
                print(schedule.as_line(fault), file=file)
    OUT.print(f"seed {plan.seed}, {len(faults)} faults in {faults[-1].at:.0f} s")
    OUT.print(_schedule_table(faults))
    if not can_mount():
        OUT.print("No file system can be mounted here: faults that fill a disk are left out.")
    if options.dry_run:
        return
    with _progress() as progress:
        report = run(plan, progress)
    for table in _report_tables(report):
        OUT.print(table)
    if options.json:
        print(report.to_json())
    if not report.is_clean:
        OUT.print(f"Logs, the schedule and the injected faults: {report.folder}")
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument(
        "--gap", type=float, default=schedule.GAP, help="mean seconds between two faults"
    )
    parser.add_argument(
        "--bound", type=float, default=420.0, help="seconds within which every batch must end"
    )
    parser.add_argument("--only", action="append", default=[], help="prefix of the kinds to inject")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        type=lambda text: tuple(text.split("=", 1)),
        metavar="NAME=VALUE",
        help="an additional setting of the stack",
    )
    parser.add_argument(
        "--schedule", type=Path, help="write the schedule to this file as JSON lines"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the schedule")
    parser.add_argument("--keep", action="store_true", help="also keep the logs of a clean run")
    parser.add_argument("--json", action="store_true", help="print the report as JSON at the end")
    return parser.parse_args()


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows progress: in place on a terminal, as lines elsewhere."""
    if not OUT.is_terminal:
        yield lambda line: print(line, flush=True)
        return
    with OUT.status("starting") as status:
        yield status.update


def _schedule_table(faults: list[schedule.Fault]) -> Table:
    table = Table("kind", "faults", "targets", "seconds")
    for name, number in schedule.counts(faults).items():
        of_kind = [fault for fault in faults if fault.kind == name]
        targets = Counter(fault.target for fault in of_kind if fault.target)
        target_counts = ", ".join(f"{target} {count}" for target, count in sorted(targets.items()))
        total = sum(fault.seconds for fault in of_kind)
        table.add_row(name, str(number), target_counts, f"{total:.0f}" if total else "")
    return table


def _report_tables(report: Report) -> Iterator[Table | str]:
    table = Table("chaos", f"seed {report.seed}")
    injected = sum(report.injected.values())
    areas: Counter[str] = Counter()
    for kind, number in report.injected.items():
        areas[kind.partition(".")[0]] += number
    for name, value in (
        ("faults injected", f"{injected} of {report.faults}, {len(report.injected)} kinds"),
        ("by area", ", ".join(f"{area} {number}" for area, number in areas.items())),
        ("missed", str(len(report.missed))),
        (
            "seconds",
            f"{report.seconds:.0f}, including {report.settle_seconds:.0f} until the last batch ended",
        ),
        ("batches", ", ".join(f"{name} {number}" for name, number in report.batches.items())),
        ("requests", ", ".join(f"{name} {number:,}" for name, number in report.requests.items())),
        ("executions", f"{report.executions:,}"),
        ("failed by cause", ", ".join(f"{name} {n}" for name, n in report.failed_by_cause.items())),
        ("samples", f"{report.samples:,} reads of live batches"),
        ("API answers", ", ".join(f"{name}: {n:,}" for name, n in report.answers.items())),
        ("innocent failures", str(report.innocent)),
        ("broken invariants", str(len(report.violations))),
    ):
        table.add_row(name, value)
    yield table
    if report.missed:
        yield "\n".join(f"missed {name}: {why}" for name, why in report.missed.items())
    for one in report.violations[:20]:
        yield f"BROKEN at {one['at']:.0f} s, {one['invariant']}: {one['evidence']}"


if __name__ == "__main__":
    main()
