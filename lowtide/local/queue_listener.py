"""Notifications that requests were queued, so that the autoscaler need not wait for its poll."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from lowtide.database.connections import engine_of
from lowtide.pipeline.split_store import QUEUED_CHANNEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection


_RETRY_SECONDS = 1.0


class QueueListener:
    """Calls `on_queued` when requests were queued, and when it has connected.

    Notifications are lost while the server is down, hence the second.
    """

    def __init__(self, url: str, on_queued: Callable[[], None]) -> None:
        self._on_queued = on_queued
        self._engine = engine_of(
            make_url(url),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": 5, "application_name": "lowtide-autoscaler, queued"},
        )

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            # The driver raises errors of other types when the server dies.
            with suppress(SQLAlchemyError, OSError, EOFError):
                await self._listen()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self) -> None:
        """Listen until the connection is lost."""
        connection = await asyncio.to_thread(self._connect)
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        driver: Any = connection.connection.driver_connection
        descriptor: int = driver.fileno()
        try:
            self._on_queued()
            while True:
                readable.clear()
                loop.add_reader(descriptor, readable.set)
                await readable.wait()
                loop.remove_reader(descriptor)
                # A statement reads what the server has sent; it fails on a lost connection.
                await asyncio.to_thread(connection.exec_driver_sql, "SELECT 1")
                self._on_queued()
        finally:
            loop.remove_reader(descriptor)
            connection.invalidate()
            connection.close()

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        try:
            connection.exec_driver_sql(f"LISTEN {QUEUED_CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection
