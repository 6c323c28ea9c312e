"""Upload: a file in, what is wrong with it or what it will take, and a batch of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nicegui import ui
from starlette.requests import ClientDisconnect

from lowtide import wiring
from lowtide.domain.errors import LowtideError
from lowtide.domain.file_estimates import estimate_file
from lowtide.settings import read_settings
from portal.acting import desk_for, measured_rate, tenants_for
from portal.arrivals import Arrivals
from portal.background import in_thread
from portal.components.batch_form import BatchForm
from portal.components.drop_zone import DropZone
from portal.components.file_report import FileReport, Rate
from portal.components.frame import frame
from portal.components.headings import heading
from portal.formats import counted, size
from portal.receiving import receive
from portal.sessions import current_visitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import TenantId
    from lowtide.domain.visitors import Visitor
    from lowtide.services.files import Checked

PATH: Final = "/upload"
EXAMPLE: Final = (
    '{"custom_id": "question-1", "method": "POST", "url": "/v1/chat/completions", "body": '
    '{"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "When is low water?"}]}}'
)


def install(*, api_url: str) -> None:
    """Serve the page of uploads, and the way that files come in."""
    arrivals = Arrivals()
    arrivals.install()

    @ui.page(PATH)
    async def upload() -> None:
        visitor = current_visitor()
        problem: str | None = None
        tenants: Mapping[TenantId, str] = {}
        try:
            tenants = await in_thread(lambda: tenants_for(visitor))
        except LowtideError as error:
            problem = error.message
        with frame("Upload", api_url=api_url, on_interval=None):
            with ui.element("div").classes("titlebar"):
                heading("Upload", 1)
                ui.label("a file of requests, one JSON object a line").classes("muted small")
            if problem is None and not visitor.may_act:
                problem = "A viewer only looks: sign in as an operator to upload a file."
            if problem is not None:
                ui.label(problem).classes("banner").props("role=alert")
            else:
                _Upload(arrivals, tenants)


class _Upload:
    """One open page."""

    def __init__(self, arrivals: Arrivals, tenants: Mapping[TenantId, str]) -> None:
        self._tenants = tenants
        self._tenant = next(iter(tenants))
        self._desk = desk_for(current_visitor())
        with ui.element("section").classes("card section"):
            heading("File")
            if len(tenants) > 1:
                ui.select(
                    dict(tenants),
                    value=self._tenant,
                    label="Tenant",
                    on_change=lambda event: self._choose(event.value),
                ).props("dense outlined").classes("narrow-field")
            self._zone = DropZone(arrivals.expect(self._receive), most=self._desk.files.max_bytes)
            self._report = FileReport()
        self._form = BatchForm(self._desk.batches)
        _explain()

    def _choose(self, tenant: TenantId) -> None:
        self._tenant = tenant

    async def _receive(self, visitor: Visitor, name: str, sent: AsyncIterator[bytes]) -> None:
        """Take one file; the page tells how far it is and what is wrong with it."""
        tenant = self._tenant
        self._form.hide()
        self._report.begin(name)
        try:
            visitor.require_operator()
            stored, checked = await receive(
                self._desk.files,
                tenant,
                name,
                sent,
                told=self._report.progress,
                actor=visitor.name,
            )
            if checked.problems:
                self._report.refuse(checked)
            else:
                await self._accept(tenant, stored, checked)
        except LowtideError as error:
            self._report.fail(error.message)
        except ClientDisconnect:
            self._report.fail("The upload was cut off: nothing of it was kept.")
            raise

    async def _accept(self, tenant: TenantId, stored: StoredFile, checked: Checked) -> None:
        measured = await in_thread(lambda: measured_rate(checked.model))
        rate = Rate(measured or read_settings().dedicated_rate, measured=measured is not None)
        estimate = estimate_file(checked.size, checked.lines, rate.lines_a_second, wiring.prices())
        self._report.accept(stored, checked, estimate, rate)
        self._form.offer(tenant, stored)


def _explain() -> None:
    settings = read_settings()
    with ui.element("section").classes("card section"):
        heading("What a line looks like")
        with ui.element("pre").classes("example mono"):
            ui.label(EXAMPLE)
        ui.label(
            f"Up to {counted(settings.max_batch_lines, 'request')} and {size(settings.max_file_bytes)} "
            f"a file, {size(settings.max_line_bytes)} a line, all of one model and one endpoint; every "
            "custom_id once. The same checks as the API's."
        ).classes("muted small")
