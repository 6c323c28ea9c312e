"""What a person reads when a batch is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from openai.types import Batch
    from rich.console import Console

    from lowtide.client import Summary


def show_summary(console: Console, batch: Batch, summary: Summary, files: dict[str, str]) -> None:
    """Print a finished batch in figures, where its files are, and why it failed if it did."""
    by_pool = ", ".join(f"{lines} on {pool}" for pool, lines in summary.pools.items() if lines)
    rerun = " (each of those lines was run again)" if summary.interruptions else ""
    rows = {
        "batch": f"{batch.id} ({batch.status})",
        "lines": f"{summary.lines} ({summary.completed} completed, {summary.failed} failed)",
        "throughput": f"{summary.lines_per_second:.1f} lines/s over {summary.seconds:.1f} s",
        "by pool": by_pool or "none",
        "interruptions": f"{summary.interruptions}{rerun}",
        "retries": str(summary.retries),
        "escalations": str(summary.escalations),
        "cost": _cost(summary.cost) if summary.cost else "unknown",
        **files,
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, highlight=False, soft_wrap=True)
    problems = batch.errors.data if batch.errors and batch.errors.data else []
    for problem in problems[:5]:
        where = f"line {problem.line}: " if problem.line else ""
        console.print(f"  {where}{problem.message}", markup=False, soft_wrap=True)


def _cost(cost: dict[str, Any]) -> str:
    """Return what a batch cost, and what it would have cost on dedicated alone."""
    return f"{cost['total']:.4g} {cost['currency']} (all on dedicated: {cost['all_dedicated']:.4g})"
