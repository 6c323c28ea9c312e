"""The progress of a batch, and its figures at the end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lowtide.cli.batch_view import cost
from lowtide.cli.client import extension
from lowtide.cli.output import print_facts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from openai.types import Batch
    from rich.console import Console
    from rich.progress import TaskID

    from lowtide.cli.client import Summary


FAILURES: Final = ("failed", "expired", "cancelled")
"""The outcomes of requests that did not complete."""


class BatchProgress:
    """Live progress of a batch; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description:12}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[notes]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("validating", total=None, notes="")
        self._last = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, batch: Batch) -> None:
        """Show the batch's status and counts."""
        counts = batch.request_counts
        total = counts.total if counts else 0
        finished = counts.completed + counts.failed if counts else 0
        notes = _notes(batch)
        self._bar.update(
            self._task,
            description=batch.status,
            total=total or None,
            completed=finished,
            notes=notes,
        )
        line = f"{batch.status}: {finished}/{total} {notes}".rstrip()
        if not self._console.is_terminal and line != self._last:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._last = line


class UploadProgress:
    """Live progress of an upload in bytes, where the console is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("uploading"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    @contextmanager
    def of(self, size: int, sent: int) -> Iterator[None]:
        """Show the upload of `size` bytes, of which an earlier attempt has sent some."""
        if sent:
            self.note(f"Resuming: {sent / 1e6:.0f} of {size / 1e6:.0f} MB are uploaded.")
        self._task = self._bar.add_task("", total=size, completed=sent)
        with self._bar:
            yield
        self._bar.remove_task(self._task)

    def add(self, count: int) -> None:
        """Count bytes that are sent, negative if they have to be sent again."""
        if self._task is not None:
            self._bar.advance(self._task, count)

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _notes(batch: Batch) -> str:
    extra = extension(batch)
    outcomes = extra.get("outcomes", {})
    parts = [
        f"{count} {name}"
        for name, count in (
            *((name, outcomes.get(name, 0)) for name in FAILURES),
            ("interruptions", extra.get("interruptions", 0)),
            ("escalated", extra.get("escalations", 0)),
        )
        if count
    ]
    counts = batch.request_counts
    if batch.status == "in_progress" and counts and not counts.completed + counts.failed:
        parts.insert(0, "waiting for workers")
    return ", ".join(parts)


def _outcomes(summary: Summary) -> list[str]:
    """Return the outcomes of requests in words; expired and cancelled ones only if there are any."""
    counts = summary.outcomes
    shown = [f"{counts.get(name, 0)} {name}" for name in ("completed", "failed")]
    return shown + [f"{counts[name]} {name}" for name in FAILURES[1:] if counts.get(name)]


def show_summary(console: Console, batch: Batch, summary: Summary, files: dict[str, str]) -> None:
    """Print a finished batch's figures, the paths of its files and up to five errors."""
    by_pool = ", ".join(f"{lines} on {pool}" for pool, lines in summary.pools.items() if lines)
    note = " (those requests were run again)" if summary.interruptions else ""
    rows = {
        "batch": f"{batch.id} ({batch.status})",
        "requests": f"{summary.requests} ({', '.join(_outcomes(summary))})",
        "throughput": f"{summary.requests_per_second:.1f} requests/s over {summary.seconds:.1f} s",
        "by pool": by_pool or "none",
        "interruptions": f"{summary.interruptions}{note}",
        "retries": str(summary.retries),
        "escalations": str(summary.escalations),
        "cost": cost(summary.cost) if summary.cost else "unknown",
        **files,
    }
    print_facts(console, rows)
    problems = batch.errors.data if batch.errors and batch.errors.data else []
    for problem in problems[:5]:
        prefix = f"line {problem.line}: " if problem.line else ""
        console.print(f"  {prefix}{problem.message}", markup=False, soft_wrap=True)
