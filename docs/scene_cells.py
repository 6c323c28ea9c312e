"""The scene of the screenshot of the cells: another portal of the stack, and invented heartbeats."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import msgspec

from lowtide.cells.model import Quote, Report
from lowtide.local.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.local.state import Status


OWN: Final = 2
TOKEN: Final = "a token of the scene"  # noqa: S105 - of servers that live for minutes
LARGE, SMALL = ("llama-3.1-70b",), ("llama-3.1-8b", "qwen2.5-*")
REPORTS: Final = {
    1: Report(
        [
            Quote(LARGE, 0.00042, 1250, 1.25, "large", 182_400, 12, 2),
            Quote(SMALL, 0.000061, 95, 0.4, "small", 9_120, 4, 0),
        ],
        "USD",
        1,
    ),
    2: Report(
        [
            Quote(LARGE, 0.00061, 3720, 0.2, "large", 96_000, 3, 4),
            Quote(SMALL, 0.000052, 40, 0.1, "small", 5_200, 5, 0),
        ],
        "USD",
        2,
    ),
    3: Report([Quote(LARGE, 0.00039, 310, 3.4, "large", 41_000, 7, 0)], "USD", 3),
    4: Report([Quote(SMALL, 0.00009, 12, 0, "small", 120, 0, 1)], "USD", 4),
}
FILE: Final = """\
cells:
  - {{number: 1, name: virginia-1, url: '{0}/1', region: us-east-1, portal: 'https://virginia-1.example'}}
  - {{number: 2, name: frankfurt-1, url: '{0}/2', region: eu-central-1}}
  - {{number: 3, name: oregon-1, url: '{0}/3', region: us-west-2, portal: 'https://oregon-1.example'}}
  - {{number: 4, name: tokyo-1, url: '{0}/4', region: ap-northeast-1, accepts_work: false}}
"""
AWAY: Final = 3
_START_SECONDS: Final = 150.0


class _Heartbeats(BaseHTTPRequestHandler):
    """The heartbeats of all cells, by the first part of the path; 503 of one that is away."""

    away: int | None = None

    def do_GET(self) -> None:
        number = int(self.path.split("/")[1])
        self.send_response(503 if number == type(self).away else 200)
        self.end_headers()
        self.wfile.write(msgspec.json.encode(REPORTS[number]))

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def portal_of_cells(status: Status) -> Iterator[str]:
    """Run a portal of the stack as that of a cell; yield its address once one cell has gone away."""
    server = ThreadingHTTPServer((HOST, 0), _Heartbeats)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = Path(status.data_dir) / "cells.yaml"
    file.write_text(FILE.format(f"http://{HOST}:{server.server_port}"))
    address = f"http://{HOST}:{(port := free_port())}"
    settings = {
        "LOWTIDE_PORTAL_PORT": str(port),
        "LOWTIDE_HEALTH_PORT": str(free_port()),
        "LOWTIDE_CELL": str(OWN),
        "LOWTIDE_CELLS": str(file),
        "LOWTIDE_CELLS_TOKEN": TOKEN,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "portal"], env=_environment(status) | settings
    )
    try:
        _wait(address)
        # The portal has seen every report, and then sees one cell go away.
        time.sleep(6)
        _Heartbeats.away = AWAY
        time.sleep(66)
        yield address
    finally:
        process.terminate()
        process.wait(10)
        server.shutdown()


def _environment(status: Status) -> dict[str, str]:
    """Return the environment of the stack's own portal."""
    running = next(each for each in status.processes if each.name == "portal").running()
    return dict(os.environ) if running is None else running.environ()


def _wait(address: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{address}/healthz", trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"The portal at {address} does not start.")
