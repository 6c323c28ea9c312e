from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.local.database import engine
from lowtide.local.queue_listener import QueueListener
from lowtide.pipeline.split_store import QUEUED_CHANNEL

from .conftest import new_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lowtide.local.database import EmbeddedPostgres

PATIENCE = 20.0
END_LISTENER = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'lowtide-autoscaler, queued' AND datname = current_database()
"""


@pytest.fixture
def url(server: EmbeddedPostgres) -> str:
    return new_database(server)


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[asyncio.Queue[None]]:
    """Yield a queue with an entry for each call."""
    calls: asyncio.Queue[None] = asyncio.Queue()
    task = asyncio.create_task(QueueListener(url, lambda: calls.put_nowait(None)).run())
    try:
        yield calls
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def execute(url: str, statement: str) -> None:
    with engine(url).connect() as connection:
        connection.execute(text(statement))


async def called(calls: asyncio.Queue[None]) -> None:
    await asyncio.wait_for(calls.get(), PATIENCE)


def test_listener_reports_each_notification(url: str) -> None:
    async def run() -> None:
        async with listening(url) as calls:
            await called(calls)  # it has connected
            for _ in range(3):
                assert calls.empty()
                await asyncio.to_thread(execute, url, f"NOTIFY {QUEUED_CHANNEL}")
                await called(calls)

    asyncio.run(run())


def test_listener_reconnects_after_lost_connection(url: str) -> None:
    async def run() -> None:
        async with listening(url) as calls:
            await called(calls)
            await asyncio.to_thread(execute, url, END_LISTENER)
            await called(calls)
            await asyncio.to_thread(execute, url, f"NOTIFY {QUEUED_CHANNEL}")
            await called(calls)

    asyncio.run(run())
