"""The seconds from the first queued request to the first claim, from zero workers.

    python -m bench.cold_start [--starts N] [--lines N]

A local stack with the no-op engine runs a small batch, drops its workers, and starts over. Each
start is split into its parts: until the autoscaler starts a process, until that process has a
lease, until it claims. Only the cooldown differs from the shipped manifests: it is shorter. The
batches are created at random times, so that they meet every phase of a poll. Ends with one JSON
line; exits with 1 if one start takes longer than the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
from sqlalchemy import text

from bench.batch_files import write_batch_file
from bench.stage import ROOT
from lowtide.cli.client import open_client
from lowtide.local import files, runtime
from lowtide.local.bootstrap import DATABASE
from lowtide.local.database import engine
from lowtide.local.options import Options
from lowtide.local.ports import HOST, free_port
from lowtide.local.state import POSTGRES

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai import OpenAI
    from sqlalchemy import Engine

    from lowtide.local.runtime import Status

T = TypeVar("T")
BAR = 2.0
PARTS = ("until a process starts", "until it has a lease", "until it claims")
LINE_BYTES = 600
PATIENCE = 60.0
POLL_SECONDS = 5.0
SAMPLE_SECONDS = 0.2
COOLDOWN = ("cooldownPeriod: 30", "cooldownPeriod: 5")
# A segment is split at its copy's end, moments before the commit that makes its requests visible.
SPAN = """
SELECT extract(epoch FROM s.split_at)::float AS queued, extract(epoch FROM min(r.started_at))::float
  AS claimed
FROM segments s JOIN results r ON r.batch_id = s.batch_id WHERE s.number = 1
GROUP BY s.batch_id, s.split_at ORDER BY s.split_at DESC LIMIT 1
"""
LEASE = "SELECT extract(epoch FROM min(started_at))::float FROM workers"


def manifests(folder: Path) -> Path:
    """Return a copy of the checkout whose workers stop soon after their last request."""
    root = folder / "root"
    root.mkdir()
    for name in ("functions", "portal", "monitoring"):
        (root / name).symlink_to(ROOT / name)
    for name in ("knative", "keda"):
        shutil.copytree(ROOT / name, root / name)
    for path in (root / "keda").glob("infer-*.yaml"):
        given = path.read_text()
        assert COOLDOWN[0] in given, path
        path.write_text(given.replace(*COOLDOWN))
    return root


class Starts:
    """Starts from zero on a running stack."""

    def __init__(self, status: Status) -> None:
        self._data_dir = Path(status.data_dir)
        self._client: OpenAI = open_client(status.base_url, status.api_key)
        self._database = _database(status)
        self._rng = random.Random(1)  # noqa: S311
        self._offset = _creation_offset()

    def one(self, path: Path) -> list[float]:
        """Run a batch from zero workers; return the seconds of each part."""
        _first(lambda: not self._processes())
        time.sleep(self._rng.uniform(0, POLL_SECONDS))
        with path.open("rb") as file:
            uploaded = self._client.files.create(file=file, purpose="batch")
        batch = self._client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        with self._database.connect() as connection:
            lease = _first(lambda: connection.scalar(text(LEASE)))
            started = min(self._processes())
            _first(lambda: self._client.batches.retrieve(batch.id).status == "completed")
            span = connection.execute(text(SPAN)).one()
        moments = [span.queued, started, lease, span.claimed]
        return [after - before for before, after in pairwise(moments)]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._database.dispose()

    def _processes(self) -> list[float]:
        """Return the times at which the running processes of workers were created."""
        status = runtime.status(self._data_dir)
        assert status is not None
        return [
            one.created - self._offset
            for one in status.processes
            if one.name.startswith("infer-") and one.pid is not None
        ]


def _first(poll: Callable[[], T]) -> T:
    """Return the first truthy result of `poll`, which is called rarely, as it takes CPU time."""
    deadline = time.monotonic() + PATIENCE
    while not (result := poll()):
        assert time.monotonic() < deadline, "Nothing happens."
        time.sleep(SAMPLE_SECONDS)
    return result


def _creation_offset() -> float:
    """Return by how much psutil's times of creation, which rely on the boot time, are late."""
    before = time.time()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as process:
        created = psutil.Process(process.pid).create_time()
    return created - before


def _database(status: Status) -> Engine:
    (port,) = (one.port for one in status.processes if one.name == POSTGRES)
    password = files.read_or_create(Path(status.data_dir)).passwords[files.SUPERUSER]
    return engine(f"postgresql://{files.SUPERUSER}:{password}@{HOST}:{port}/{DATABASE}")


def measure(starts: int, lines: int) -> list[list[float]]:
    """Return the parts of each start."""
    folder = Path(tempfile.mkdtemp(prefix="bench-cold-"))
    os.environ["LOWTIDE_ENGINE"] = "noop"
    options = Options(
        root=manifests(folder), data_dir=folder / "stack", port=free_port(), quiet=True
    )
    path = folder / "input.jsonl"
    write_batch_file(path, lines, LINE_BYTES)
    try:
        measured = Starts(runtime.up_detached(options))
        try:
            return [measured.one(path) for _ in range(starts)]
        finally:
            measured.close()
    finally:
        runtime.down(options.data_dir)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure, and print the distribution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--lines", type=int, default=200, help="requests of each batch")
    given = parser.parse_args()
    starts = measure(given.starts, given.lines)
    for name, column in zip(PARTS, zip(*starts, strict=True), strict=True):
        print(f"{name:24} median {statistics.median(column):.2f} s, max {max(column):.2f} s")
    totals = sorted(sum(parts) for parts in starts)
    print(f"{'first claim':24} {' '.join(f'{total:.2f}' for total in totals)} s")
    missed = [f"{total:.2f} s, above the bar of {BAR} s" for total in totals if total > BAR]
    print(
        json.dumps(
            {"starts": [[round(part, 3) for part in one] for one in starts], "missed": missed}
        )
    )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
