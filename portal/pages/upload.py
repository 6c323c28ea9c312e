"""The upload page: a file, its problems or its estimate, and a batch of it."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.batches.service import BatchRequest
from lowtide.core.errors import LowtideError
from lowtide.core.ids import format_batch_id, format_file_id
from lowtide.files.model import FilePart, estimate_file
from lowtide.planning.urgency import MAX_PRIORITY, MIN_PRIORITY
from portal.components.basics import heading
from portal.components.drop_zone import DropZone
from portal.components.frame import frame, page
from portal.formats import counted, day, duration, size
from portal.loading import load
from portal.pages.file_report import FileReport, rate_source
from portal.receiving import PATH as RECEIVING
from portal.receiving import Arrivals, Receiver
from portal.services import in_thread, lowtide, services_for, tenants_for
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.batches.model import Batch
    from lowtide.batches.service import Batches
    from lowtide.core.ids import TenantId
    from lowtide.files.model import StoredFile
    from lowtide.files.service import Checked


class BatchForm:
    """A form that creates one batch of a valid file; hidden until there is one."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._tenant: TenantId | None = None
        self._key = self._file = ""
        with ui.element("section").classes("card section") as section:
            heading("Batch")
            with ui.element("div").classes("fields"):
                self._window = ui.input("Completion window", value="24h")
                self._user = ui.input("User", value=current_principal().name)
                self._priority = ui.number(
                    "Priority", value=0, min=MIN_PRIORITY, max=MAX_PRIORITY, precision=0
                )
                for field in (self._window, self._user, self._priority):
                    field.props("dense outlined")
            ui.label("A number with a unit, such as 30m, 24h or 7d.").classes("muted small")
            ui.label(
                "Higher priorities run first, among your batches whose deadlines hold."
            ).classes("muted small")
            self._kept = ui.label("").classes("muted small")
            self._problem = ui.label("").classes("banner").props("role=alert")
            with ui.element("div").classes("actions"):
                self._create = ui.button("Create batch", on_click=self._submit).props(
                    "unelevated no-caps"
                )
            self._result = ui.element("div").classes("section").props("role=status")
        self._section = section
        self.hide()

    def hide(self) -> None:
        """Hide the form."""
        self._section.set_visibility(False)
        self._tenant = None

    def offer(self, file: StoredFile) -> None:
        """Show the form for this file."""
        self._tenant, self._file = file.tenant, format_file_id(file.id)
        # The slot names the viewer's time zone.
        with self._section:
            deleted = "" if file.expires_at is None else f" and deleted on {day(file.expires_at)}"
        self._kept.text = f"The file is kept for {_kept()}{deleted}."
        # One idempotency key per file: repeated clicks create one batch.
        self._key = f"portal-{uuid.uuid4()}"
        self._result.clear()
        self._problem.set_visibility(False)
        self._create.enable()
        self._section.set_visibility(True)

    async def _submit(self) -> None:
        tenant = self._tenant
        if tenant is None:
            return
        self._problem.set_visibility(False)
        self._create.disable()
        try:
            principal = current_principal()
            principal.require_operator()
            request = BatchRequest(
                input_file_id=self._file,
                user=(self._user.value or "").strip() or principal.name,
                completion_window=(self._window.value or "").strip(),
                idempotency_key=self._key,
                actor=principal.name,
                priority=int(self._priority.value or 0),
            )
            batch = await in_thread(lambda: self._batches.create(tenant, request))
        except LowtideError as error:
            self._problem.text = error.message
            self._problem.set_visibility(True)
            self._create.enable()
            return
        self._show(batch)

    def _show(self, batch: Batch) -> None:
        name = format_batch_id(batch.id)
        with self._result:
            if batch.at_risk:
                ui.label("At risk: there may not be enough capacity to meet the deadline.")
            with ui.element("a").props(f'href="/batches/{name}"').classes("link break"):
                ui.label(f"View {name}")


PATH: Final = "/upload"
EXAMPLE: Final = (
    '{"custom_id": "question-1", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "When is low water?"}]}}'
)


def install(*, api_url: str) -> None:
    """Serve the upload page and the upload route."""
    arrivals = Arrivals()
    arrivals.install()

    @page(PATH)
    async def upload() -> None:
        principal = current_principal()
        problem: str | None = None
        tenants: Mapping[TenantId, str] = {}
        with frame("Upload", api_url=api_url, on_interval=None):
            with ui.element("div").classes("titlebar"):
                heading("Upload", 1)
                ui.label("A JSONL file with one request per line").classes("muted small")
            try:
                tenants = await load(lambda: tenants_for(principal))
            except LowtideError as error:
                problem = error.message
            if problem is None and not principal.may_act:
                problem = "Viewers cannot upload files: sign in as an operator."
            if problem is None and not tenants:
                problem = "There is no tenant yet: create one on the Tenants page."
            if problem is not None:
                ui.label(problem).classes("banner").props("role=alert")
            else:
                _Upload(arrivals, tenants)


class _Upload:
    """An open upload page."""

    def __init__(self, arrivals: Arrivals, tenants: Mapping[TenantId, str]) -> None:
        self._tenants = tenants
        self._tenant = next(iter(tenants))
        self._services = services_for(current_principal())
        with ui.element("section").classes("card section"):
            heading("File")
            if len(tenants) > 1:
                ui.select(
                    dict(tenants),
                    value=self._tenant,
                    label="Tenant",
                    on_change=lambda event: self._choose(event.value),
                ).props("dense outlined").classes("narrow-field")
            DropZone(
                arrivals.expect(Receiver(self._services.uploads, self)),
                path=RECEIVING,
                max_bytes=self._services.files.max_bytes,
                hint=(
                    f"It is validated and kept for {_kept()}. Nothing runs until you create a batch."
                ),
            )
            self._report = FileReport()
        self._form = BatchForm(self._services.batches)
        _explain()

    def _choose(self, tenant: TenantId) -> None:
        self._tenant = tenant

    @property
    def tenant(self) -> TenantId:
        """The tenant of the next file."""
        return self._tenant

    def begin(self) -> None:
        """Start a file."""
        self._form.hide()
        self._report.clear()

    def check(self, filename: str) -> None:
        """Show that the file is being checked."""
        self._report.begin(filename)

    def progress(self, checked: Checked) -> None:
        """Show the progress of the checks."""
        self._report.progress(checked)

    def fail(self, message: str) -> None:
        """Show the error that ended the upload."""
        self._report.fail(message)

    async def accept(self, stored: StoredFile, checked: Checked) -> None:
        """Show the file's problems, or its estimate and the form for its batch."""
        if checked.problems:
            self._report.refuse(checked)
            return
        models = stored.model_counts or ((checked.model, checked.lines),)
        fleets = self._services.fleets
        routed = [(model, fleets.route(model or "") or next(iter(fleets))) for model, _ in models]
        measured = await in_thread(
            lambda: [
                self._services.forecaster.measured_rate(fleet.name, model)
                for model, fleet in routed
            ]
        )
        parts = [
            FilePart(lines, rate or fleet.dedicated.rate, self._services.prices(fleet))
            for (_, lines), (_, fleet), rate in zip(models, routed, measured, strict=True)
        ]
        self._report.accept(
            stored,
            checked,
            estimate_file(checked.size, parts),
            rate_source(sum(rate is not None for rate in measured), len(measured)),
        )
        self._form.offer(stored)


def _kept() -> str:
    """Return how long a file is kept: `30 days`."""
    span = timedelta(seconds=lowtide().settings.file_expiry)
    return counted(span.days, "day") if span.days else duration(span)


def _explain() -> None:
    settings = lowtide().settings
    shared = "model and endpoint" if settings.one_model_per_file else "endpoint"
    with ui.element("section").classes("card section"):
        heading("Example line")
        with ui.element("pre").classes("example mono"):
            ui.label(EXAMPLE)
        ui.label(
            f"Up to {counted(settings.max_batch_lines, 'request')} and {size(settings.max_file_bytes)} "
            f"per file, {size(settings.max_line_bytes)} per line. All requests have the same {shared}, "
            "and each custom_id is unique. The API makes the same checks."
        ).classes("muted small")
