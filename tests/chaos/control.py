"""The control port of a helper process, which takes orders as JSON over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]


async def serve_control(take: Callable[[dict[str, Any]], Awaitable[None]]) -> int:
    """Serve `POST /faults` while the event loop runs; return the port."""

    async def handle(request: web.Request) -> web.Response:
        await take(await request.json())
        return web.Response(status=204)

    application = web.Application()
    application.router.add_post("/faults", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    port: int = runner.addresses[0][1]
    return port


@dataclass
class Helper:
    """A helper process and its control port."""

    process: subprocess.Popen[bytes]
    control: int

    @classmethod
    def start(cls, module: str, arguments: Sequence[str | Path], errors: Path) -> Helper:
        """Start `python -m module arguments`, which prints its control port as JSON."""
        with errors.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=ROOT,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{module} did not start: {errors.read_text()[-2000:]}"
        return cls(process, json.loads(line)["control"])

    def order(self, **order: object) -> None:
        """Make the process start a fault, or end all faults with `mode="heal"`."""
        request = urllib.request.Request(
            f"http://{HOST}:{self.control}/faults",
            json.dumps(order).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            pass

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
