"""A killed cell: what it costs calls to the others, and how soon new work and its own work go on.

    python -m bench.cell_outage [--seconds 30]

Three cells as `lowtide up --cells 3` runs them, each with batches of slow requests. Two clients read
batches of the first and the third cell through the front, in turn, and a third one creates batches. The
second cell is killed, and later started again. Ends with one JSON line; exits with 1 if a read was
refused, or if no batch was created within 5 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Final

import httpx

from lowtide.local import runtime
from lowtide.local.cells import kill_cell, start_cell
from tests.e2e.questions import chat_file
from tests.e2e.stacks import running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.stacks import LocalStack

SETTINGS: Final = {
    "LOWTIDE_SIMULATED_LATENCY": "5",
    "LOWTIDE_SPOT_REPLICAS": "1",
    "LOWTIDE_DEDICATED_REPLICAS": "0",
}
BATCHES, REQUESTS, READERS = 4, 500, 2
BAR: Final = 5.0
PATIENCE: Final = 300.0


@dataclass
class Calls:
    """Calls of one client: when each began, its seconds and its status."""

    made: list[tuple[float, float, int]] = field(default_factory=list)

    def between(self, began: float, ended: float) -> list[tuple[float, float, int]]:
        """Return the calls that began in a time."""
        return [call for call in self.made if began <= call[0] < ended]


@contextmanager
def repeating(call: Callable[[httpx.Client], int], stack: LocalStack) -> Iterator[Calls]:
    """Repeat a call in a thread for the block."""
    calls, over = Calls(), threading.Event()

    def run() -> None:
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        with httpx.Client(base_url=stack.base_url, headers=headers, timeout=60) as client:
            while not over.is_set():
                began = time.monotonic()
                status = call(client)
                calls.made.append((began, time.monotonic() - began, status))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield calls
    finally:
        over.set()
        thread.join()


def create(client: httpx.Client, at: str = "") -> tuple[int, str]:
    """Create a batch at the front or a cell; return the status of the first refusal, and its id."""
    file = client.post(
        f"{at}/v1/files",
        files={"file": ("a.jsonl", chat_file(REQUESTS))},
        data={"purpose": "batch"},
    )
    if file.status_code != 200:
        return file.status_code, ""
    batch = client.post(f"{at}/v1/batches", json={"input_file_id": file.json()["id"]})
    return batch.status_code, batch.json().get("id", "")


def reading(batches: list[str]) -> Callable[[httpx.Client], int]:
    """Return a call that reads batches in turn."""
    turns = cycle(batches)
    return lambda client: client.get(f"/v1/batches/{next(turns)}").status_code


def creating(client: httpx.Client) -> int:
    """Create a batch, at most twice a second."""
    status, _ = create(client)
    time.sleep(0.5 if status == 200 else 0.05)
    return status


def measure(stack: LocalStack, seconds: float) -> dict[str, float]:
    """Return the figures."""
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with httpx.Client(headers=headers, timeout=60) as client, ExitStack() as block:
        batches = {
            cell.base_url: [create(client, cell.base_url)[1] for _ in range(BATCHES)]
            for cell in stack.installations
        }
        first, victim, third = batches.values()
        readers = [
            block.enter_context(repeating(reading(first + third), stack)) for _ in range(READERS)
        ]
        creator = block.enter_context(repeating(creating, stack))
        time.sleep(3.0)
        began = time.monotonic()
        time.sleep(seconds)
        cell = _status(stack).cells[1]
        killed = time.monotonic()
        kill_cell(cell)
        time.sleep(seconds)
        started = time.monotonic()
        start_cell(cell)
        until(
            lambda: client.get(f"{stack.base_url}/v1/batches/{victim[0]}").status_code == 200,
            "the cell is back",
            within=PATIENCE,
        )
        back = time.monotonic()
    before = _seconds(reader.between(began, killed) for reader in readers)
    away = _seconds(reader.between(killed, started) for reader in readers)
    accepted = [when + took for when, took, status in creator.made if status == 200]
    refused = [call for call in creator.between(killed, back) if call[2] != 200]
    return {
        "reads_before": len(before),
        "reads_away": len(away),
        "p50_before_ms": statistics.median(before) * 1e3,
        "p50_away_ms": statistics.median(away) * 1e3,
        "p99_before_ms": statistics.quantiles(before, n=100)[98] * 1e3,
        "p99_away_ms": statistics.quantiles(away, n=100)[98] * 1e3,
        "p99_ratio": statistics.quantiles(away, n=100)[98]
        / statistics.quantiles(before, n=100)[98],
        "reads_refused": sum(call[2] != 200 for reader in readers for call in reader.made),
        "creations_refused": len(refused),
        "next_batch_s": min(at for at in accepted if at > killed) - killed,
        "return_s": back - started,
    }


def _seconds(calls: Iterator[list[tuple[float, float, int]]]) -> list[float]:
    return [seconds for some in calls for _, seconds, _ in some]


def _status(stack: LocalStack) -> runtime.Status:
    status = runtime.status(stack.data_dir)
    if status is None:
        raise SystemExit("The stack has ended.")
    return status


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=30.0, help="before and after the kill")
    given = parser.parse_args()
    with running(SETTINGS, cells=3) as stack:
        figures = measure(stack, given.seconds)
    print(
        f"reads of other cells: p50 {figures['p50_before_ms']:.1f} ms before, "
        f"{figures['p50_away_ms']:.1f} ms while one is away; p99 {figures['p99_before_ms']:.1f} and "
        f"{figures['p99_away_ms']:.1f} ms ({figures['p99_ratio']:.2f}); the next batch was created after "
        f"{figures['next_batch_s']:.2f} s; the cell was back {figures['return_s']:.1f} s after its start"
    )
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    sys.exit(figures["reads_refused"] > 0 or figures["next_batch_s"] > BAR)


if __name__ == "__main__":
    main()
