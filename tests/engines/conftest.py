"""A scripted HTTP server in its own thread."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER = b'{"object":"chat.completion","usage":{"prompt_tokens":3,"completion_tokens":4}}'

_TLS_HANDSHAKE = b"\x16"


@dataclass
class Script:
    """Bytes to send, and the action after them: keep the connection, close it, or hang."""

    data: bytes
    then: str = "keep"


@dataclass
class ScriptedUpstream:
    """Picks the script by the request's model, and records every request."""

    scripts: dict[str, Script] = field(default_factory=dict)
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    redirects: dict[bytes, str] = field(default_factory=dict)
    """Redirects by path: the response head after `HTTP/1.1`."""
    in_flight: int = 0
    max_in_flight: int = 0
    connections: int = 0
    min_in_flight: int = 0
    """Replies are sent only once this many requests are in flight."""
    url: str = ""

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def reply(self, model: str, body: bytes, *, status: str = "200 OK", head: str = "") -> None:
        """Script a whole reply for a model."""
        start = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n"
        self.scripts[model] = Script(start.encode("latin-1") + body)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first = await reader.readexactly(1)
        if first == _TLS_HANDSHAKE:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            return False
        head = first + await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
        self.requests.append((head, body))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self._changed.set()
        while self.in_flight < self.min_in_flight and self.max_in_flight < self.min_in_flight:
            self._changed.clear()
            await self._changed.wait()
        model = json.loads(body)["model"] if body else "models"
        default = Script(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))
        script = self.scripts.get(model, default)
        if (redirect := self.redirects.get(head.split()[1])) is not None:
            script = Script(f"HTTP/1.1 {redirect}\r\nContent-Length: 0\r\n\r\n".encode())
        self.in_flight -= 1
        writer.write(script.data)
        await writer.drain()
        if script.then == "hang":
            await reader.read()
        return script.then == "keep"


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    server = ScriptedUpstream()
    yield server
    server.stop()
