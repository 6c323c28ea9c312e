"""Actions on dead letters, without a browser."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock

import pytest
from fastapi import Request
from nicegui import Client, run
from nicegui.page import page

from lowtide.core.errors import Unauthenticated
from lowtide.core.ids import BatchId, TenantId
from lowtide.core.scopes import Role
from lowtide.dead_letters.model import LetterId
from lowtide.dead_letters.service import Discarded
from lowtide.tenants.sign_in import Principal
from portal.pages import letter_actions
from portal.pages.letter_actions import LetterActions
from portal.queries import LetterQuery
from portal.sessions import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

ACME, ZOO = TenantId(uuid.UUID(int=1)), TenantId(uuid.UUID(int=2))


@pytest.mark.parametrize("action", ["_start_requeue", "_start_discard"])
def test_action_fails_if_session_ends_during_confirmation(
    action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: dict[str, Any] = {}
    open_session(session, Principal("ana", Role.OPERATOR, None, "c"), 60)
    service = Mock()
    service.requeuer.requeue.return_value = Mock(changed=2, unchanged=0, remaining=0, batches=())
    service.dead_letters.discard.return_value = Mock(
        spec=Discarded, changed=2, unchanged=0, remaining=0
    )

    async def confirm_after_sign_out(
        *_: object, fill: Callable[[], object] = dict, **__: object
    ) -> bool:
        fill()
        session.clear()
        return True

    async def act() -> None:
        scope = {"type": "http", "path": "/", "session": session, "headers": []}
        with Client(page(""), request=Request(scope)):
            actions = LetterActions(service, on_done=AsyncMock())
            actions.aim(TenantId(uuid.uuid4()), LetterQuery.read({}))
            actions.choose({})
            with pytest.raises(Unauthenticated):
                await getattr(actions, action)()

    monkeypatch.setattr(letter_actions, "confirm", confirm_after_sign_out)
    run.setup()
    asyncio.run(act())
    calls = [*service.requeuer.requeue.call_args_list, *service.dead_letters.discard.call_args_list]
    assert len(calls) == 1, "only the dry run for the confirmation"


@pytest.mark.parametrize(
    ("chosen", "selected", "acts_on"),
    [
        pytest.param(None, (), None, id="all tenants"),
        pytest.param(ACME, (), ACME, id="one tenant"),
        pytest.param(None, (ZOO, ZOO), ZOO, id="selection of one tenant"),
        pytest.param(None, (ACME, ZOO), None, id="selection of two tenants"),
    ],
)
def test_actions_concern_one_tenant(
    chosen: TenantId | None, selected: tuple[TenantId, ...], acts_on: TenantId | None
) -> None:
    session: dict[str, Any] = {}
    open_session(session, Principal("ana", Role.OPERATOR, None, "c"), 60)
    service = Mock()
    service.dead_letters.discard.return_value = Mock(spec=Discarded, changed=0)
    selection = {
        LetterId(BatchId(uuid.uuid4()), line): tenant for line, tenant in enumerate(selected)
    }

    async def act() -> None:
        scope = {"type": "http", "path": "/", "session": session, "headers": []}
        with Client(page(""), request=Request(scope)):
            actions = LetterActions(service, on_done=AsyncMock())
            actions.aim(chosen, LetterQuery.read({}))
            actions.choose(selection)
            await actions._start_discard()

    run.setup()
    asyncio.run(act())
    tenants = [call.args[0] for call in service.dead_letters.discard.call_args_list]
    assert tenants == ([] if acts_on is None else [acts_on])
