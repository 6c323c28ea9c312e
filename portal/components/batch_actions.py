"""Actions on batches: counting, cancelling, and running failed requests again."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from nicegui import ui

from lowtide.batches.views import COUNTED
from lowtide.core.errors import LowtideError
from lowtide.reruns.service import RerunRequest
from portal.components.basics import confirm
from portal.formats import counted, number
from portal.services import in_thread
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Protocol

    from lowtide.batches.browsing import BatchCancellation
    from lowtide.batches.model import Batch
    from lowtide.batches.views import BatchFilter, CancelPlan
    from lowtide.core.ids import BatchId
    from lowtide.reruns.service import Reruns

    class CancelHandler(Protocol):
        """A callback that cancels the selected batches, or all matches with `everything`."""

        def __call__(self, *, everything: bool) -> Awaitable[None]: ...


class BatchToolbar:
    """A toolbar above a list; a selection of the whole page can extend to all matches."""

    def __init__(
        self, *, may_act: bool, on_cancel: CancelHandler, on_clear: Callable[[], None]
    ) -> None:
        self._may_act = may_act
        self._everything = False
        self._count = 0
        self._on_cancel = on_cancel
        with ui.element("div").classes("actions toolbar"):
            self._count_label = ui.label("").classes("muted").props("role=status").mark("matching")
            ui.element("div").classes("spacer")
            self._selection_label = ui.label("").mark("chosen")
            self._all = ui.button("", on_click=self._choose_everything, color=None)
            self._clear_button = ui.button("Clear selection", on_click=on_clear, color=None)
            self._cancel = ui.button("Cancel batches…", on_click=self._request_cancel, color=None)
        for button in (self._all, self._clear_button, self._cancel):
            button.props("flat dense no-caps")

    def show(self, count: int, chosen: int, on_page: int) -> None:
        """Show the number of matching and of selected batches."""
        self._count = count
        self._everything = self._everything and chosen > 0
        total = counted_batches(count)
        self._count_label.text = total
        self._selection_label.text = (
            f"all {total} selected" if self._everything else f"{chosen} selected"
        )
        self._all.text = f"Select all {total} that match"
        is_whole_page = chosen == on_page and count > chosen
        self._selection_label.set_visibility(chosen > 0)
        self._clear_button.set_visibility(chosen > 0)
        self._cancel.set_visibility(self._may_act and chosen > 0)
        self._all.set_visibility(chosen > 0 and is_whole_page and not self._everything)

    def choose_none(self) -> None:
        """Clear the selection, including that of all matches."""
        self._everything = False
        self.show(self._count, 0, 0)

    def _choose_everything(self) -> None:
        self._everything = True
        self._selection_label.text = f"all {counted_batches(self._count)} selected"
        self._all.set_visibility(False)

    async def _request_cancel(self) -> None:
        await self._on_cancel(everything=self._everything)


def counted_batches(count: int) -> str:
    """Return a count of batches in words; above COUNTED, `1,000+ batches`."""
    if count > COUNTED:
        return f"{COUNTED:,}+ batches"
    return "1 batch" if count == 1 else f"{count:,} batches"


def title_of(batch: Batch, tenant: str) -> str:
    """Return a batch in words: `globex / summaries (3,000 requests, 151 done)`."""
    owner = " / ".join(filter(None, (tenant, batch.user)))
    if not batch.total:
        return owner
    done = batch.outcomes.completed + batch.outcomes.failed
    return f"{owner} ({counted(batch.total, 'request')}, {number(done)} done)"


async def cancel_batches(
    cancellation: BatchCancellation,
    selection: BatchFilter | Sequence[BatchId],
    titles: Mapping[BatchId, str],
) -> bool:
    """Cancel batches after confirmation, exactly those it counted; return True if it tried.

    A single batch is named by its title.
    """
    try:
        return await _cancel(cancellation, selection, titles)
    except LowtideError as error:
        ui.notify(error.message, type="negative", position="bottom")
        return False


async def _cancel(
    cancellation: BatchCancellation,
    selection: BatchFilter | Sequence[BatchId],
    titles: Mapping[BatchId, str],
) -> bool:
    principal = current_principal()
    plan = await in_thread(lambda: cancellation.plan(principal, selection))
    if not plan.batches:
        ui.notify(
            "Nothing to cancel: these batches have ended or are already cancelling.",
            position="bottom",
        )
        return False
    count_text = counted_batches(len(plan.batches))
    title = titles.get(plan.batches[0]) if len(plan.batches) == 1 else None
    confirmed = await confirm(
        f"Cancel {title or count_text}?",
        _consequences(plan),
        action=f"Cancel {count_text}",
        dangerous=True,
    )
    if not confirmed:
        return False
    # Checked again: the session may end while the dialog is open.
    principal = current_principal()
    cancelled = await in_thread(lambda: cancellation.cancel(principal, plan.batches))
    already_ended = len(plan.batches) - cancelled
    text = f"Cancelling {counted_batches(cancelled)}."
    if already_ended:
        text += f" {counted_batches(already_ended).capitalize()} had already ended."
    ui.notify(text, type="positive" if cancelled else "info", position="bottom")
    return True


async def run_failed_again(reruns: Reruns, batch: Batch) -> BatchId | None:
    """Run a batch's failed requests in a new batch after confirmation; return the new batch."""
    try:
        return await _run_failed_again(reruns, batch)
    except LowtideError as error:
        ui.notify(error.message, type="negative", position="bottom")
        return None


async def _run_failed_again(reruns: Reruns, batch: Batch) -> BatchId | None:
    current_principal().require_operator()
    plan = await in_thread(lambda: reruns.plan(batch.tenant, batch.id))
    requests = sum(plan.counts.values())
    if not requests:
        ui.notify(
            "Nothing to run again: these dead letters were requeued or discarded.",
            position="bottom",
        )
        return None
    window = batch.completion_window
    sentences = [
        f"A new batch with the same window of {window} runs them; this one stays as it is."
    ]
    if plan.letters:
        sentences.append(f"{counted(plan.letters, 'dead letter')} among them will be requeued.")
    if plan.handled:
        sentences.append(
            f"{counted(plan.handled, 'dead letter')} already requeued or discarded stay out."
        )
    outcomes = [
        f"{number(count)} {outcome.value.lower()}"
        for outcome, count in plan.counts.items()
        if count
    ]
    text = f"{' and '.join(outcomes)} request{'' if requests == 1 else 's'}"
    if not await confirm(
        f"Run {text} again?", sentences, action=f"Run {counted(requests, 'request')} again"
    ):
        return None
    # Checked again: the session may end while the dialog is open.
    principal = current_principal()
    principal.require_operator()
    # The key makes one batch of a call that is repeated.
    request = RerunRequest(batch.id, principal.name, idempotency_key=f"portal-{uuid4()}")
    rerun = await in_thread(lambda: reruns.rerun(batch.tenant, request))
    return rerun.batch


def _consequences(plan: CancelPlan) -> list[str]:
    sentences = [
        "Queued requests are dropped; running requests get a few seconds to finish. Results so far are kept."
    ]
    if plan.unchanged:
        sentences.append(
            f"Already ended or cancelling, unchanged: {counted_batches(plan.unchanged)}."
        )
    if plan.more:
        sentences.append("More batches match than one action cancels: repeat it for the rest.")
    return sentences
