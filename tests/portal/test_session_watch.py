"""Open pages of ended sessions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import Request
from nicegui import Client, run
from nicegui.page import page

from lowtide.core.scopes import Role
from lowtide.tenants.sign_in import Principal, SignInGuard
from portal.session_watch import SessionWatch
from portal.sessions import SIGN_IN, open_session

if TYPE_CHECKING:
    import pytest


def _opened(credential: str, seconds: int) -> Client:
    session: dict[str, object] = {}
    open_session(session, Principal("ana", Role.OPERATOR, None, credential), seconds)
    scope = {"type": "http", "path": "/", "session": session, "headers": []}
    return Client(page(""), request=Request(scope))


def _redirects(client: Client) -> list[str]:
    return [content["path"] for _, kind, content in client.outbox.messages if kind == "open"]


def test_page_of_ended_session_is_redirected_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second redirect would make the browser abort the first one."""
    # Excludes the pages of other tests.
    monkeypatch.setattr(Client, "instances", {})

    async def scenario() -> None:
        watch = SessionWatch(SignInGuard([], timer=lambda: 0.0))
        opened = [_opened("changed since", 60), _opened("", -1)]
        try:
            for _ in range(3):
                await watch.check()
            assert [_redirects(client) for client in opened] == [[SIGN_IN], [SIGN_IN]]
        finally:
            for client in opened:
                client.delete()

    run.setup()
    asyncio.run(scenario())
