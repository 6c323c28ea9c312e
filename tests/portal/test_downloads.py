"""The limit of concurrent downloads through the portal."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lowtide.core.scopes import Role
from lowtide.tenants.sign_in import Principal
from portal.downloads import MAX_OF_ONE, MOST, Download

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


async def _status(download: Download) -> int:
    """Run a download; return the status that was sent."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    await download({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    return int(sent[0]["status"])


def test_downloads_over_limit_are_refused_until_one_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lowtide = SimpleNamespace(settings=SimpleNamespace(client_timeout=30))
    monkeypatch.setattr("portal.downloads.lowtide", lambda: lowtide)
    gate = threading.Event()
    started = threading.Semaphore(0)

    def slow() -> Iterator[bytes]:
        yield b"first"
        started.release()
        assert gate.wait(30)
        yield b"last"

    def download(name: str) -> Download:
        return Download(Principal(name, Role.VIEWER), slow, "a.jsonl")

    async def scenario() -> None:
        names = [str(number // MAX_OF_ONE) for number in range(MOST)]
        running = [asyncio.create_task(_status(download(name))) for name in names[:-1]]
        for _ in running:
            assert await asyncio.to_thread(started.acquire, timeout=30)
        assert await _status(download("0")) == 503
        running.append(asyncio.create_task(_status(download(names[-1]))))
        assert await asyncio.to_thread(started.acquire, timeout=30)
        assert await _status(download("another")) == 503
        gate.set()
        assert await asyncio.gather(*running) == [200] * MOST
        assert await _status(download("0")) == 200

    asyncio.run(scenario())
