"""What the front adds to a cell: the median of a read, and the rate of a 200 MB upload.

    python -m bench.front [--reads 2000] [--uploads 5] [--json]

One cell behind the local router, as behind a gateway; the same calls alternate between the router
(direct) and a front on it. The client speaks HTTP/1.1 on one open connection to each.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

from bench.stage import ROOT, Stage
from lowtide.local.files import write_endpoints
from lowtide.local.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.stage import Function

TOKEN = "bench-of-the-front"  # noqa: S105 - of this run alone
MEGABYTE = 1_000_000
UPLOAD = 200 * MEGABYTE
PIECE = 1 << 20
BOUNDARY = "bench"
LINE = json.dumps(
    {
        "custom_id": "%08d",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "x" * 3800}]},
    }
)


class Target:
    """A server, on one open connection."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {key}"}
        self._connection = HTTPConnection(HOST, port, timeout=120)

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body."""
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def upload(self, body: bytes) -> tuple[float, dict[str, object]]:
        """Return the seconds of an upload, and the file."""
        headers = {
            **self._headers,
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            "Content-Length": str(len(body)),
        }
        pieces = (body[start : start + PIECE] for start in range(0, len(body), PIECE))
        connection = HTTPConnection(HOST, self._port, timeout=300)
        began = time.perf_counter()
        connection.request("POST", "/v1/files", body=pieces, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - began
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"The upload failed: {answer.status} {content[:300]!r}")
        return seconds, json.loads(content)


def form() -> bytes:
    """Return the body of an upload of almost 200 MB."""
    size = len(LINE % 0) + 1
    lines = "\n".join(LINE % number for number in range(UPLOAD // size)).encode()
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    ).encode()
    return head + lines + f"\r\n--{BOUNDARY}--\r\n".encode()


@contextmanager
def router(stage: Stage, functions: dict[str, Function]) -> Iterator[int]:
    """Serve the functions on one port, by the routes of the manifests."""
    port = free_port()
    write_endpoints(
        stage.folder, {name: [f"http://{HOST}:{each.port}"] for name, each in functions.items()}
    )
    command = [sys.executable, "-m", "lowtide.local.router", "--root", str(ROOT)]
    command += ["--data-dir", str(stage.folder), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT)  # noqa: S603
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


def measure(reads: int, uploads: int) -> dict[str, float]:
    """Return the figures."""
    cell = {"LOWTIDE_CELL": "1", "LOWTIDE_CELLS_TOKEN": TOKEN}
    with (
        tempfile.TemporaryDirectory(prefix="lowtide-bench-") as folder,
        Stage(Path(folder), variables=cell) as stage,
        stage.function("read", "api") as read,
        stage.function("upload", "api", LOWTIDE_MAX_BATCH_LINES="100000") as upload,
        router(stage, {"read": read, "upload": upload}) as port,
    ):
        file = Path(folder) / "cells.yaml"
        file.write_text(
            f"cells: [{{number: 1, name: one, url: 'http://{HOST}:{port}', region: here}}]"
        )
        wait_until_served(port, stage.secrets.api_key)
        with stage.function("front", "api", LOWTIDE_CELLS=str(file)) as front:
            direct = Target(port, stage.secrets.api_key)
            fronted = Target(front.port, stage.secrets.api_key)
            figures = measured_uploads(direct, fronted, front, uploads)
            return figures | measured_reads(direct, fronted, front, reads)


def wait_until_served(port: int, key: str) -> None:
    """Wait until the router serves."""
    problem: object = None
    for _ in range(100):
        try:
            status, problem = Target(port, key).get("/v1/files")
        except OSError as error:
            status, problem = 0, error
        if status == 200:
            return
        time.sleep(0.1)
    raise SystemExit(f"The router does not serve: {problem!r}")


def measured_uploads(
    direct: Target, fronted: Target, front: Function, runs: int
) -> dict[str, float]:
    """Alternate uploads; return the median rates and the front's memory before and after."""
    body = form()
    before = front.peak_megabytes()
    rates: dict[str, list[float]] = {"direct": [], "fronted": []}
    for _ in range(runs):
        for name, target in (("direct", direct), ("fronted", fronted)):
            rates[name].append(len(body) / MEGABYTE / target.upload(body)[0])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "upload_direct_mb_s": medians["direct"],
        "upload_front_mb_s": medians["fronted"],
        "upload_ratio": medians["fronted"] / medians["direct"],
        "front_peak_mb_before": before,
        "front_peak_mb": front.peak_megabytes(),
    }


def measured_reads(
    direct: Target, fronted: Target, front: Function, reads: int
) -> dict[str, float]:
    """Read a file in random turns; return medians, 99th percentiles and the front's CPU a read, in ms."""
    page = json.loads(direct.get("/v1/files?limit=1")[1])
    path = f"/v1/files/{page['data'][0]['id']}"
    turns = [("direct", direct), ("front", fronted)] * reads
    random.Random(1).shuffle(turns)  # noqa: S311
    seconds: dict[str, list[float]] = {"direct": [], "front": []}
    used = front.cpu()
    for name, target in turns:
        began = time.perf_counter()
        status, _ = target.get(path)
        seconds[name].append(time.perf_counter() - began)
        if status != 200:
            raise SystemExit(f"A read failed: {status}")
    figures: dict[str, float] = {}
    for name, values in seconds.items():
        figures[f"read_{name}_ms"] = statistics.median(values) * 1000
        figures[f"read_{name}_p99_ms"] = statistics.quantiles(values, n=100)[-1] * 1000
    figures["read_added_ms"] = figures["read_front_ms"] - figures["read_direct_ms"]
    # Its heartbeats are in it.
    figures["read_front_cpu_ms"] = (front.cpu() - used) / reads * 1000
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--uploads", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.reads, arguments.uploads)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<24} {value:10.2f}")


if __name__ == "__main__":
    main()
