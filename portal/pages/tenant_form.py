"""The dialog that creates a tenant or changes its weight and limits."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.core.durations import format_window, parse_span
from lowtide.core.errors import LowtideError
from lowtide.tenants.model import LIMITS, differences
from lowtide.tenants.service import SHORTEST_RETENTION, TenantChanges, most_of, told
from portal.components.basics import confirm, heading
from portal.pages.administration import name_problem, tenancy_of_principal
from portal.services import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lowtide.tenants.model import Tenant, TenantLimits


class TenantForm:
    """A dialog that changes a tenant, or creates one without `tenant`; closes on success."""

    def __init__(
        self, tenant: Tenant | None, defaults: TenantLimits, on_done: Callable[[], Awaitable[None]]
    ) -> None:
        self._tenant = tenant
        self._on_done = on_done
        limits = defaults if tenant is None else tenant.limits
        title = "New tenant" if tenant is None else f"Change {tenant.name}"
        with (
            ui.dialog().props("aria-label=Tenant") as self._dialog,
            ui.element("div").classes("card dialog form section"),
        ):
            heading(title)
            self._name = ui.input("Name", validation=name_problem)
            self._name.props("dense outlined maxlength=63 autofocus")
            self._name.set_visibility(tenant is None)
            with ui.element("div").classes("fields"):
                weight = 1 if tenant is None else tenant.weight
                self._weight = _figure(
                    "Weight", weight, "Share relative to other tenants", "weight"
                )
                self._limits = {
                    name: _figure(label, getattr(limits, name), "Empty: no limit", name, free=True)
                    for name, label in LIMITS.items()
                }
                kept = tenant.batch_retention if tenant else None
                self._retention = ui.input(
                    "Retention",
                    value="" if kept is None else format_window(timedelta(seconds=kept)),
                    validation=_retention_problem,
                )
                self._retention.props("dense outlined maxlength=6")
                self._retention.props["hint"] = "Such as 7d. Empty: the installation's"
            self._zero_retention = ui.checkbox(
                "Zero retention: encrypt every upload, and destroy its key with it",
                value=tenant is not None and tenant.zero_retention,
            )
            ui.label(
                "Unfinished requests have no result yet; the limit covers all batches, and so does that of "
                "enqueued tokens, an estimate of their input. Over the limit of running requests, requests "
                "wait; over any other limit, the API responds with 429. Once the tokens of a day or the "
                "spend of a month, both in UTC, are used up, requests wait as well."
            ).classes("muted small")
            self._problem = ui.label("").classes("banner").props("role=alert")
            self._problem.set_visibility(False)
            with ui.element("div").classes("actions end"):
                ui.button("Cancel", on_click=self._dialog.close, color=None).props("flat no-caps")
                ui.button(
                    "Create tenant" if tenant is None else "Review changes", on_click=self._submit
                ).props("unelevated no-caps")
        self._dialog.on("hide", self._dialog.delete)
        self._dialog.open()

    async def _submit(self) -> None:
        fields = [self._weight, *self._limits.values(), self._retention]
        if self._tenant is None:
            fields.append(self._name)
        # All fields are validated, so that each shows its error.
        if sum(not field.validate() for field in fields):
            return
        try:
            message = await (self._create() if self._tenant is None else self._change(self._tenant))
        except LowtideError as error:
            self._problem.text = error.message
            self._problem.set_visibility(True)
            return
        if message:
            ui.notify(message, type="positive", multi_line=True)
            self._dialog.close()
            await self._on_done()

    async def _create(self) -> str:
        name, changes = (self._name.value or "").strip(), self._changes()
        tenancy = tenancy_of_principal()
        await in_thread(lambda: tenancy.create(name, changes))
        return f"Created {name}"

    async def _change(self, tenant: Tenant) -> str:
        changes = self._changes()
        descriptions = told(differences(tenant, changes.apply(tenant)))
        if not descriptions:
            ui.notify("No changes.", type="info")
            return ""
        details = [*descriptions, "The change applies from the next request on."]
        if not await confirm(f"Change {tenant.name}?", details, action=f"Change {tenant.name}"):
            return ""
        tenancy = tenancy_of_principal()
        await in_thread(lambda: tenancy.change(tenant.name, changes, tenant))
        return f"{tenant.name}: {', '.join(descriptions)}"

    def _changes(self) -> TenantChanges:
        return TenantChanges(
            _number(self._weight.value),
            {name: _number(field.value) for name, field in self._limits.items()},
            _seconds(self._retention.value),
            bool(self._zero_retention.value),
        )


def _figure(label: str, value: int | None, hint: str, name: str, *, free: bool = False) -> ui.input:
    most = most_of(name)
    field = ui.input(
        label,
        value="" if value is None else str(value),
        validation=partial(_limit_problem if free else _figure_problem, most=most),
    )
    field.props(f"dense outlined inputmode=numeric maxlength={len(f'{most:,}')}")
    field.props["hint"] = hint
    return field


def _number(text: str | None) -> int | None:
    digits = (text or "").replace(",", "").strip()
    return int(digits) if digits else None


def _seconds(text: str | None) -> int:
    """Return the seconds of a retention; 0 stands for the installation's."""
    span = parse_span((text or "").strip())
    return 0 if span is None else int(span.total_seconds())


def _retention_problem(text: str | None) -> str | None:
    if not (text or "").strip() or _seconds(text) >= SHORTEST_RETENTION:
        return None
    return "Enter a number and a unit, such as 7d; at least 1h."


def _limit_problem(text: str | None, most: int) -> str | None:
    """Return the error of a limit; an empty one is valid and means no limit."""
    return _figure_problem(text, most) if (text or "").strip() else None


def _figure_problem(text: str | None, most: int) -> str | None:
    digits = (text or "").replace(",", "").strip()
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(most))
    if is_number and 1 <= int(digits) <= most:
        return None
    return f"Enter a number from 1 to {most:,}."
