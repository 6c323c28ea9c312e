"""Ends sessions whose password or API key is no longer one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from nicegui import Client

from lowtide.domain.errors import LowtideError
from portal.background import in_thread
from portal.sessions import SIGN_IN, visitor_of

if TYPE_CHECKING:
    from lowtide.services.entrance import Entrance

# The browser gets this long to hear that it is to leave; then the page answers nothing any more.
_GRACE: Final = 1.0


class SessionWatch:
    """Looks at the sessions of all open pages at once, with every turn of the poller.

    What is asked for by HTTP, the guard checks by itself.
    """

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance

    async def check(self) -> None:
        """Close the pages of sessions that are over; while nobody can tell, none is."""
        opened = {client: _credential(client) for client in list(Client.instances.values())}
        credentials = {each for each in opened.values() if each is not None}
        if not credentials:
            return
        try:
            ended = await in_thread(lambda: self._entrance.ended(credentials))
        except LowtideError:
            return
        for client, credential in opened.items():
            if credential in ended:
                client.open(SIGN_IN)
                asyncio.get_running_loop().call_later(_GRACE, _close, client)


def _credential(client: Client) -> str | None:
    visitor = visitor_of(client.request.session)
    return None if visitor is None else visitor.credential


def _close(client: Client) -> None:
    if client.id in Client.instances:
        client.delete()
