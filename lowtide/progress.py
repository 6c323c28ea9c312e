"""A batch's progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lowtide.client import extension

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from openai.types import Batch
    from rich.console import Console


class BatchProgress:
    """Shows a batch as it changes; use it as a context manager."""

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
        """Show the batch as it is now."""
        counts = batch.request_counts
        total = counts.total if counts else 0
        done = counts.completed + counts.failed if counts else 0
        notes = _notes(batch)
        self._bar.update(
            self._task,
            description=batch.status,
            total=total or None,
            completed=done,
            notes=notes,
        )
        line = f"{batch.status}: {done}/{total} {notes}".rstrip()
        if not self._console.is_terminal and line != self._last:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._last = line


def _notes(batch: Batch) -> str:
    more = extension(batch)
    failed = batch.request_counts.failed if batch.request_counts else 0
    parts = [
        f"{count} {name}"
        for name, count in (
            ("failed", failed),
            ("interruptions", more.get("interruptions", 0)),
            ("escalated", more.get("escalations", 0)),
        )
        if count
    ]
    counts = batch.request_counts
    if batch.status == "in_progress" and counts and not counts.completed + counts.failed:
        parts.insert(0, "waiting for workers")
    return ", ".join(parts)
