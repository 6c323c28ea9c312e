"""Actions of the dead letter page: requeue, discard and download."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.core.errors import LowtideError
from lowtide.core.ids import format_batch_id
from lowtide.core.pools import Pool
from lowtide.dead_letters.model import LetterFilter
from lowtide.dead_letters.requeue import RequeueRequest
from lowtide.dead_letters.service import Content
from portal import downloads
from portal.components.basics import confirm
from portal.formats import counted, number
from portal.services import in_thread
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from lowtide.core.ids import TenantId
    from lowtide.dead_letters.model import LetterId
    from lowtide.dead_letters.requeue import RequeueOutcome
    from lowtide.dead_letters.service import Discarded
    from lowtide.services import Services
    from portal.queries import LetterQuery


class LetterActions:
    """Actions on the selected dead letters, or on all that match.

    Requeue and discard first count the dead letters in a dry run, and name the count for
    confirmation. They and downloads concern one tenant: the chosen one, or that of the selection.
    """

    def __init__(self, services: Services, *, on_done: Callable[[], Awaitable[None]]) -> None:
        self._services = services
        self._on_done = on_done
        self._may_act = current_principal().may_act
        self._chosen: TenantId | None = None
        self._tenant: TenantId | None = None
        self._filter = LetterFilter()
        self._selection: Sequence[LetterId] = ()
        with ui.element("div").classes("actions toolbar"):
            self._label = ui.label("").classes("muted small")
            self._requeue = self._button("Requeue…", self._start_requeue)
            self._discard = self._button("Discard…", self._start_discard)
            ui.element("span").classes("spacer")
            self._links = {content: _link(content) for content in Content}
        self._result = ui.element("div").classes("result").props("role=status")
        self.rest()

    def aim(self, tenant: TenantId | None, query: LetterQuery) -> None:
        """Act on the dead letters that match this query; a tenant of None is all tenants."""
        self._chosen, self._filter = tenant, query.filter()
        for content, link in self._links.items():
            link.props["href"] = query.address(downloads.PATH, which=content.value)
            link.set_visibility(tenant is not None)

    def choose(self, selection: Mapping[LetterId, TenantId]) -> None:
        """Act on these dead letters; without any, on all that match."""
        tenants = set(selection.values())
        self._selection = list(selection)
        self._tenant = self._chosen or (tenants.pop() if len(tenants) == 1 else None)
        self._label.text = f"{number(len(selection))} selected" if selection else "All that match"
        if self._may_act and self._tenant is None:
            self._label.text += ": choose one tenant to requeue or discard them"
        for button in (self._requeue, self._discard):
            button.set_visibility(self._may_act)
            button.set_enabled(self._tenant is not None)

    def rest(self) -> None:
        """Disable all actions."""
        self._chosen = self._tenant = None
        for button in (self._requeue, self._discard):
            button.set_enabled(False)
        for link in self._links.values():
            link.set_visibility(False)

    def _button(self, text: str, start: Callable[[], Awaitable[None]]) -> ui.button:
        async def handle() -> None:
            try:
                await start()
            except LowtideError as error:
                ui.notify(error.message, type="negative", multi_line=True, timeout=10_000)

        return ui.button(text, on_click=handle, color=None).props("outline no-caps dense")

    def _target(self) -> Sequence[LetterId] | LetterFilter:
        return list(self._selection) if self._selection else self._filter

    async def _start_requeue(self) -> None:
        tenant, target = self._tenant, self._target()
        if tenant is None:
            return
        dry = RequeueRequest(target, _actor(), dry_run=True)
        preview = await in_thread(lambda: self._services.requeuer.requeue(tenant, dry))
        if not preview.changed:
            ui.notify("None of these dead letters is open.", type="info")
            return
        # One idempotency key per confirmation: the dead letters are requeued once.
        key = f"portal-{uuid.uuid4()}"
        options: list[_RequeueOptions] = []
        confirmed = await confirm(
            f"Requeue {counted(preview.changed, 'dead letter')}?",
            _requeue_details(preview),
            action=f"Requeue {number(preview.changed)}",
            fill=lambda: options.append(_RequeueOptions()),
        )
        if confirmed:
            actor = _actor()
            window, pool = options[0].answer()
            request = RequeueRequest(target, actor, window, key, pool=pool)
            outcome = await in_thread(lambda: self._services.requeuer.requeue(tenant, request))
            self._show_requeued(outcome)
            await self._on_done()

    async def _start_discard(self) -> None:
        tenant, target = self._tenant, self._target()
        if tenant is None:
            return

        def discard(actor: str, *, dry_run: bool) -> Discarded:
            return self._services.dead_letters.discard(tenant, target, actor=actor, dry_run=dry_run)

        actor = _actor()
        preview = await in_thread(lambda: discard(actor, dry_run=True))
        if not preview.changed:
            ui.notify("None of these dead letters is open.", type="info")
            return
        count = counted(preview.changed, "dead letter")
        details = [
            "They stay in the list and in the batch's error file, and can no longer be requeued."
        ]
        if await confirm(
            f"Discard {count}?",
            details + _unaffected(preview.unchanged, preview.remaining),
            action=f"Discard {number(preview.changed)}",
            dangerous=True,
        ):
            confirmed_by = _actor()
            outcome = await in_thread(lambda: discard(confirmed_by, dry_run=False))
            ui.notify(f"{counted(outcome.changed, 'dead letter')} discarded", type="positive")
            await self._on_done()

    def _show_requeued(self, outcome: RequeueOutcome) -> None:
        self._result.clear()
        with self._result:
            ui.label(f"{counted(outcome.changed, 'dead letter')} requeued:")
            for entry in outcome.batches[:5]:
                if entry.batch is not None:
                    name = format_batch_id(entry.batch)
                    ui.link(
                        f"{name[:14]}… ({counted(entry.letters, 'request')})", f"/batches/{name}"
                    )
            if len(outcome.batches) > 5:
                ui.label(f"and {len(outcome.batches) - 5} more")


def _actor() -> str:
    # Checked again before the change: the session may end while the dialog is open.
    principal = current_principal()
    principal.require_operator()
    return principal.name


def _requeue_details(preview: RequeueOutcome) -> list[str]:
    sources = sum(1 for entry in preview.batches if entry.batch is None)
    batches = "1 new batch"
    if sources != 1:
        batches = f"{number(sources)} new batches, one for each source batch"
    return [f"Creates {batches}.", *_unaffected(preview.unchanged, preview.remaining)]


def _unaffected(unchanged: int, remaining: int) -> list[str]:
    sentences = []
    if unchanged:
        sentences.append(
            f"Already requeued or discarded, unchanged: {counted(unchanged, 'dead letter')}."
        )
    if remaining:
        sentences.append(
            f"Over the limit of one action: {counted(remaining, 'dead letter')}. Repeat the action for them."
        )
    return sentences


class _RequeueOptions:
    """The options of a requeue."""

    def __init__(self) -> None:
        pools = {
            Pool.SPOT: "spot, escalated to dedicated if the deadline requires it",
            Pool.DEDICATED: "dedicated only",
        }
        self._window = ui.input("Completion window", placeholder="same as the source batch").props(
            'dense outlined hint="Such as 30m, 24h or 7d; empty: same as the source batch"'
        )
        self._pool = ui.select(pools, value=Pool.SPOT, label="Pool").props(
            "dense outlined options-dense"
        )

    def answer(self) -> tuple[str | None, Pool]:
        """Return the completion window, None for the source batch's, and the pool."""
        return (self._window.value or "").strip() or None, Pool(self._pool.value)


def _link(content: Content) -> ui.element:
    link = ui.element("a").classes("link nowrap").props("download")
    with link:
        ui.label(f"Download {content}s").classes("small")
    return link
