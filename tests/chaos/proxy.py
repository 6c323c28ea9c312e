"""TCP proxies that break on command: `python -m tests.chaos.proxy DATA_DIR STORE_PORT NAME=PORT…`.

The control takes `{name, mode, seconds, amount}`: `partition` (no bytes pass, connections stay),
`refuse` (every connection is reset), `delay` (`amount` seconds per piece), `reset` (once), `cut` (each connection is
reset after `amount` more bytes), `swallow` (an HTTP request is answered with 202 and lost), `heal`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.control import HOST, serve_control

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE = 1 << 16


@dataclass
class Proxy:
    """A TCP proxy; `target` returns the port behind it for each connection."""

    target: Callable[[], int]
    mode: str = ""
    until: float = 0.0
    amount: float = 0.0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def state(self) -> str:
        """The current fault mode; empty if there is none."""
        return self.mode if time.monotonic() < self.until else ""

    def order(self, mode: str, seconds: float, amount: float) -> None:
        """Start a fault that ends after its seconds."""
        if mode in {"reset", "refuse", "swallow"}:
            for writer in list(self.writers):
                writer.transport.abort()
        if mode != "reset":
            self.mode, self.until, self.amount = mode, time.monotonic() + seconds, amount

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        try:
            await self._while_partitioned()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        if self.state == "refuse":
            writer.transport.abort()
            return
        if self.state == "swallow":
            await _swallow(reader, writer)
            return
        try:
            there, back = await asyncio.open_connection(HOST, self.target(), limit=_PIECE)
        except (OSError, KeyError, ValueError):
            writer.transport.abort()
            return
        both = {writer, back}
        self.writers |= both
        directions = [
            asyncio.create_task(self._relay(reader, back)),
            asyncio.create_task(self._relay(there, writer)),
        ]
        try:
            await asyncio.wait(directions)
        finally:
            for task in directions:
                task.cancel()
            for one in both:
                one.transport.abort()
            self.writers -= both

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed: float = 0
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                await self._while_partitioned()
                if self.state == "delay":
                    await asyncio.sleep(self.amount)
                elif self.state == "cut":
                    passed += len(piece)
                    if passed > self.amount:
                        writer.write(piece[: len(piece) // 2])
                        break
                writer.write(piece)
                await writer.drain()
            else:
                # The other direction may still have data.
                if writer.can_write_eof():
                    writer.write_eof()
                return
        writer.transport.abort()

    async def _while_partitioned(self) -> None:
        while self.state == "partition":  # noqa: ASYNC110 - a fault ends by the clock
            await asyncio.sleep(0.05)


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read one small HTTP request and answer 202."""
    with suppress(OSError, asyncio.IncompleteReadError, ValueError):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length or b"0"))
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
    writer.close()


def port_of(data_dir: Path, name: str) -> int:
    """Return the port of a stack's process; raises OSError, KeyError or ValueError if it has none."""
    state = json.loads((data_dir / "state.json").read_bytes())
    return int({one["name"]: one["port"] for one in state["processes"]}[name] or 0)


async def main(data_dir: Path, store: int, ports: dict[str, int]) -> None:
    """Serve until killed."""
    proxies: dict[str, Proxy] = {}
    for name, port in ports.items():

        def target(name: str = name) -> int:
            return store if name == "store" else port_of(data_dir, name)

        proxies[name] = Proxy(target)
        await asyncio.start_server(proxies[name].serve, HOST, port, limit=_PIECE, backlog=512)

    async def take(order: dict[str, Any]) -> None:
        for name, proxy in proxies.items():
            if order.get("name", name) == name:
                proxy.order(order["mode"], order.get("seconds", 0), order.get("amount", 0))

    print(json.dumps({"control": await serve_control(take)}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    ports = dict(one.split("=") for one in sys.argv[3:])
    with suppress(KeyboardInterrupt):
        asyncio.run(
            main(
                Path(sys.argv[1]),
                int(sys.argv[2]),
                {name: int(port) for name, port in ports.items()},
            )
        )
