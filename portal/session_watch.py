"""A watch that closes the open pages of ended sessions."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nicegui import Client

from lowtide.core.errors import LowtideError
from portal.services import in_thread
from portal.sessions import SIGN_IN, SIGNED_OUT, is_over, principal_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.tenants.sign_in import SignInGuard


# Seconds for the browser to receive the redirect before the page is deleted.
_GRACE: Final = 1.0


class SessionWatch:
    """Checks the sessions of all open pages on every turn of the poller.

    The guard checks HTTP requests.
    """

    def __init__(self, guard: SignInGuard) -> None:
        self._guard = guard
        self._checking = False
        self._redirected: set[str] = set()

    async def check(self) -> None:
        """Close the pages of ended sessions; pages stay open while credentials cannot be checked.

        One check runs at a time: checks that wait for a hanging database would use up all threads.
        """
        clients = list(Client.instances.values())
        for client in clients:
            if is_over(client.request.session):
                self._redirect_to_sign_in(client)
        if self._checking:
            return
        self._checking = True
        try:
            if SIGNED_OUT.is_due():
                with suppress(LowtideError):
                    await in_thread(SIGNED_OUT.sync)
            await self._check_credentials(clients)
        finally:
            self._checking = False

    async def _check_credentials(self, clients: Sequence[Client]) -> None:
        by_client = {client: _credential(client) for client in clients}
        credentials = {each for each in by_client.values() if each is not None}
        if not credentials:
            return
        try:
            invalid = await in_thread(lambda: self._guard.ended(credentials))
        except LowtideError:
            return
        for client, credential in by_client.items():
            if credential in invalid:
                self._redirect_to_sign_in(client)

    def _redirect_to_sign_in(self, client: Client) -> None:
        # A second redirect would make the browser abort the first and start over.
        if client.id in self._redirected:
            return
        self._redirected.add(client.id)
        client.open(SIGN_IN)
        asyncio.get_running_loop().call_later(_GRACE, self._close, client)

    def _close(self, client: Client) -> None:
        self._redirected.discard(client.id)
        if client.id in Client.instances:
            client.delete()


def _credential(client: Client) -> str | None:
    principal = principal_of(client.request.session)
    return None if principal is None else principal.credential
