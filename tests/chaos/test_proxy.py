"""The proxy breaks connections on command and recovers on its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.chaos.control import HOST
from tests.chaos.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    _opened.append(writer)
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Proxy, int]]:
    """Yield a proxy in front of an echo server, and the proxy's port."""
    server = await asyncio.start_server(_echo, HOST, 0)
    behind = server.sockets[0].getsockname()[1]
    proxy = Proxy(lambda: behind)
    front = await asyncio.start_server(proxy.serve, HOST, 0)
    async with server, front:
        try:
            yield proxy, front.sockets[0].getsockname()[1]
        finally:
            await _end_all(proxy)


async def _end_all(proxy: Proxy) -> None:
    """Close every remaining connection and cancel its tasks."""
    proxy.order("refuse", 600, 0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for writer in _opened:
        writer.transport.abort()
    _opened.clear()
    await asyncio.sleep(0)  # the transports close in the next iteration of the loop


_opened: list[asyncio.StreamWriter] = []


async def exchange(ends: Ends, word: bytes) -> bytes:
    """Send a word and return the answer; empty if the connection is closed."""
    reader, writer = ends
    try:
        writer.write(word)
        return await reader.readexactly(len(word))
    except (OSError, asyncio.IncompleteReadError):
        return b""


async def connect(port: int) -> Ends:
    """Connect to a local port."""
    ends = await asyncio.open_connection(HOST, port)
    _opened.append(ends[1])
    return ends


def test_bytes_and_eof_are_relayed() -> None:
    async def work() -> None:
        async with proxied() as (_, port):
            reader, writer = await connect(port)
            assert await exchange((reader, writer), b"tide") == b"tide"
            writer.write_eof()
            assert await reader.read() == b""

    asyncio.run(work())


@pytest.mark.parametrize("mode", ["reset", "refuse", "cut"])
def test_connections_break_until_healed(mode: str) -> None:
    async def work() -> None:
        async with proxied() as (proxy, port):
            old = await connect(port)
            assert await exchange(old, b"tide") == b"tide"
            proxy.order(mode, 600, 2)
            assert await exchange(old, b"tide") == b""
            if mode == "refuse":
                assert await exchange(await connect(port), b"tide") == b""
            proxy.order("heal", 0, 0)
            new = await connect(port)
            assert await exchange(new, b"tide") == b"tide"

    asyncio.run(work())


def test_partition_delays_bytes_without_loss() -> None:
    async def work() -> None:
        async with proxied() as (proxy, port):
            ends = await connect(port)
            proxy.order("partition", 600, 0)
            answer = asyncio.create_task(exchange(ends, b"tide"))
            later = asyncio.create_task(exchange(await connect(port), b"flood"))
            done, _ = await asyncio.wait([answer, later], timeout=0.3)
            assert not done
            proxy.order("heal", 0, 0)
            assert await answer == b"tide"
            assert await later == b"flood"

    asyncio.run(work())


def test_fault_ends_after_its_seconds() -> None:
    proxy = Proxy(lambda: 0)
    proxy.order("delay", 0.0, 1.0)
    assert proxy.state == ""
    proxy.order("delay", 600.0, 1.0)
    assert proxy.state == "delay"


def test_swallowed_event_is_answered_with_202() -> None:
    async def work() -> None:
        async with proxied() as (proxy, port):
            proxy.order("swallow", 600, 0)
            reader, writer = await connect(port)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 202 ")

    asyncio.run(work())
