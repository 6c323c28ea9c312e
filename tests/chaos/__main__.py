"""The command: `python -m tests.chaos --seed 1 --faults 1000`; exits with 1 for a broken invariant."""

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
    """Run, and say what held."""
    given = _arguments()
    plan = Plan(
        given.seed,
        given.faults,
        gap=given.gap,
        bound=given.bound,
        only=tuple(given.only),
        settings=dict(given.setting),
        keep=given.keep,
    )
    faults = plan.schedule()
    if given.schedule:
        with given.schedule.open("w") as file:
            for fault in faults:
                print(schedule.as_line(fault), file=file)
    OUT.print(f"seed {plan.seed}, {len(faults)} faults in {faults[-1].at:.0f} s")
    OUT.print(_scheduled(faults))
    if not can_mount():
        OUT.print("No file system can be mounted here: disks that are full are left out.")
    if given.dry_run:
        return
    with _progress() as progress:
        report = run(plan, progress)
    for table in _shown(report):
        OUT.print(table)
    if given.json:
        print(report.to_json())
    if not report.is_clean:
        OUT.print(f"Logs, the schedule and what was injected: {report.folder}")
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--gap", type=float, default=schedule.GAP, help="mean seconds between two")
    parser.add_argument("--bound", type=float, default=420.0, help="seconds until all must be over")
    parser.add_argument("--only", action="append", default=[], help="kinds that begin with this")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        type=lambda text: tuple(text.split("=", 1)),
        metavar="NAME=VALUE",
        help="a further setting of the stack",
    )
    parser.add_argument("--schedule", type=Path, help="write the schedule here, as JSON lines")
    parser.add_argument("--dry-run", action="store_true", help="print the schedule, break nothing")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a clean run too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, last")
    return parser.parse_args()


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield what shows a line: in place on a terminal, one below the other elsewhere."""
    if not OUT.is_terminal:
        yield lambda line: print(line, flush=True)
        return
    with OUT.status("starting") as status:
        yield status.update


def _scheduled(faults: list[schedule.Fault]) -> Table:
    table = Table("kind", "faults", "targets", "seconds")
    for name, number in schedule.counts(faults).items():
        these = [fault for fault in faults if fault.kind == name]
        targets = Counter(fault.target for fault in these if fault.target)
        shown = ", ".join(f"{target} {count}" for target, count in sorted(targets.items()))
        total = sum(fault.seconds for fault in these)
        table.add_row(name, str(number), shown, f"{total:.0f}" if total else "")
    return table


def _shown(report: Report) -> Iterator[Table | str]:
    table = Table("chaos", f"seed {report.seed}")
    injected = sum(report.injected.values())
    areas: Counter[str] = Counter()
    for kind, number in report.injected.items():
        areas[kind.partition(".")[0]] += number
    for name, value in (
        ("faults injected", f"{injected} of {report.faults}, {len(report.injected)} kinds"),
        ("by area", ", ".join(f"{area} {number}" for area, number in areas.items())),
        ("missed", str(len(report.missed))),
        ("seconds", f"{report.seconds:.0f}, of them {report.settle_seconds:.0f} to settle"),
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
