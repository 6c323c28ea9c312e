"""Making a batch of an uploaded file."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.errors import LowtideError
from lowtide.domain.ids import format_batch_id, format_file_id
from lowtide.services.batches import BatchRequest
from portal.background import in_thread
from portal.components.headings import heading
from portal.sessions import current_visitor

if TYPE_CHECKING:
    from lowtide.domain.batches import Batch
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import TenantId
    from lowtide.services.batches import Batches


class BatchForm:
    """Out of sight until there is a good file; then it makes one batch of it."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._tenant: TenantId | None = None
        self._key = self._file = ""
        with ui.element("section").classes("card section") as section:
            heading("Batch")
            with ui.element("div").classes("fields"):
                self._window = ui.input("Completion window", value="24h")
                self._user = ui.input("User", value=current_visitor().name)
                for field in (self._window, self._user):
                    field.props("dense outlined")
            ui.label("A number and a unit: 30m, 24h or 7d.").classes("muted small")
            self._problem = ui.label("").classes("banner").props("role=alert")
            with ui.element("div").classes("actions"):
                self._create = ui.button("Create batch", on_click=self._make).props(
                    "unelevated no-caps"
                )
            self._made = ui.element("div").classes("section").props("role=status")
        self._section = section
        self.hide()

    def hide(self) -> None:
        """Offer nothing."""
        self._section.set_visibility(False)
        self._tenant = None

    def offer(self, tenant: TenantId, file: StoredFile) -> None:
        """Offer to make a batch of this file."""
        self._tenant, self._file = tenant, format_file_id(file.id)
        # The same key for every press of the button: it makes one batch.
        self._key = f"portal-{uuid.uuid4()}"
        self._made.clear()
        self._problem.set_visibility(False)
        self._create.enable()
        self._section.set_visibility(True)

    async def _make(self) -> None:
        tenant = self._tenant
        if tenant is None:
            return
        self._problem.set_visibility(False)
        self._create.disable()
        try:
            visitor = current_visitor()
            visitor.require_operator()
            wanted = BatchRequest(
                input_file_id=self._file,
                user=(self._user.value or "").strip() or visitor.name,
                completion_window=(self._window.value or "").strip(),
                idempotency_key=self._key,
                actor=visitor.name,
            )
            batch = await in_thread(lambda: self._batches.create(tenant, wanted))
        except LowtideError as error:
            self._problem.text = error.message
            self._problem.set_visibility(True)
            self._create.enable()
            return
        self._show(batch)

    def _show(self, batch: Batch) -> None:
        name = format_batch_id(batch.id)
        with self._made:
            if batch.at_risk:
                ui.label("Its deadline may not hold: there is more to do than capacity for it.")
            with ui.element("a").props(f'href="/batches/{name}"').classes("link break"):
                ui.label(f"Watch {name}")
