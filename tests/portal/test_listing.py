"""Unreadable lists, and lists of different tenants, without a browser."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING
from unittest.mock import MagicMock, Mock

import pytest
from fastapi import Request
from nicegui import Client, run, ui
from nicegui.page import page

from lowtide.core.errors import Unavailable
from lowtide.core.ids import TenantId
from lowtide.core.scopes import Role
from lowtide.tenants.sign_in import Principal
from portal import listing, loading
from portal.listing import Listed, ListPage
from portal.pages.administration import TenantQuery
from portal.polling import Readings
from portal.sessions import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence


class Rows(ListPage[TenantQuery, str]):
    """A list of one row, the principal's tenant; reads fail while it is `broken`."""

    TITLE = NOTHING = "rows"
    broken = False
    rows: Sequence[str] = ()
    client: Client

    def prepare(self) -> None:
        if self.broken:
            raise Unavailable("The database does not answer.")

    def controls(self) -> None:
        """Have none."""

    def table(self) -> None:
        """Have none."""

    def reader(self) -> Callable[[], Listed[str]]:
        def read() -> Listed[str]:
            self.prepare()
            return Listed([str(self.principal.tenant)], more=False)

        return read

    def show(self, listed: Listed[str]) -> None:
        self.rows = listed.items

    def mark(self, item: str) -> str:
        return item


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A stub of `Live`; `keep` receives the callback that redraws the page."""
    stub = MagicMock()
    stub.return_value.paused = False
    monkeypatch.setattr(listing, "Live", stub)
    return stub


def _run(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    run.setup()
    asyncio.run(scenario())


def _listed(readings: Readings, *, broken: bool = False, tenant: TenantId | None = None) -> Rows:
    session: dict[str, object] = {}
    open_session(session, Principal("ana", Role.OPERATOR, tenant, "c"), 60)
    scope = {"type": "http", "path": "/", "session": session, "headers": []}
    with Client(page(""), request=Request(scope)) as client:
        opened = Rows(Mock(), readings, TenantQuery())
        opened.broken, opened.client = broken, client
    return opened


async def _open(opened: Rows) -> Rows:
    with opened.client:
        await opened.open("")
    return opened


@pytest.mark.usefixtures("live")
def test_unreadable_list_appears_once_it_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    frame_sent = asyncio.Event()

    async def connected(_: Client, __: float) -> None:
        frame_sent.set()

    monkeypatch.setattr(Client, "connected", connected)
    monkeypatch.setattr(loading, "_RETRY_SECONDS", 0.05)

    async def scenario() -> None:
        opened = _listed(Readings(), broken=True)
        opening = asyncio.ensure_future(_open(opened))
        await asyncio.wait_for(frame_sent.wait(), 5)
        assert not opened.rows
        opened.broken = False
        await asyncio.wait_for(opening, 5)
        await opened.reload()
        assert opened.rows == ["None"]

    _run(scenario)


@pytest.mark.usefixtures("live")
def test_failed_read_drops_rows_of_other_filter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ui.navigate.history, "replace", Mock())

    async def scenario() -> None:
        opened = await _open(_listed(Readings()))
        await opened.reload()
        assert opened.rows == ["None"]
        opened.broken = True
        await opened.reload()
        assert opened.rows == ["None"], "rows of the same address stay"
        with opened.client:
            await opened.narrow(TenantQuery(text="b"))
        assert not opened.rows

    _run(scenario)


@pytest.mark.usefixtures("live")
def test_tenants_do_not_share_readings() -> None:
    async def scenario() -> None:
        readings, tenants = Readings(), [TenantId(uuid.uuid4()) for _ in range(2)]
        opened = [await _open(_listed(readings, tenant=tenant)) for tenant in tenants]
        for each in opened:
            await each.reload()
        assert [each.rows for each in opened] == [[str(tenant)] for tenant in tenants]

    _run(scenario)
