"""Downloads through the portal: few at a time."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from portal.downloads import MOST, Download

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def test_more_than_a_few_downloads_are_refused_until_one_is_over() -> None:
    gate = threading.Event()
    begun = threading.Semaphore(0)

    def slow() -> Iterator[bytes]:
        yield b"first"
        begun.release()
        assert gate.wait(30)
        yield b"last"

    async def visit() -> None:
        running = [asyncio.create_task(_status(Download(slow, "a.jsonl"))) for _ in range(MOST)]
        for _ in running:
            assert await asyncio.to_thread(begun.acquire, timeout=30)
        assert await _status(Download(slow, "a.jsonl")) == 503
        gate.set()
        assert await asyncio.gather(*running) == [200] * MOST
        assert await _status(Download(slow, "a.jsonl")) == 200

    asyncio.run(visit())
