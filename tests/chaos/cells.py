"""Chaos among cells: `python -m tests.chaos.cells --seed 1 --faults 12`; exits with 1 if an invariant breaks.

Three local cells behind a front get batches while whole cells are killed, cut off and evacuated, and
come back in the middle of it. Every accepted batch must complete, each of its requests exactly once, in
exactly one cell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import httpx
import psutil

from lowtide.cells.front import MISSING
from tests import oracle
from tests.e2e.command import LOWTIDE, clean_environment, lowtide
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.stacks import FINAL, LocalStack, running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CELLS: Final = 3
SETTINGS: Final = {
    "LOWTIDE_SIMULATED_LATENCY": "1",
    "LOWTIDE_SPOT_REPLICAS": "1",
    "LOWTIDE_DEDICATED_REPLICAS": "0",
    "LOWTIDE_LEASE_DURATION": "3",
    "LOWTIDE_WORKER_POLL_CAP": "1",
    "LOWTIDE_STALLED_AFTER": "10",
}
_LIVE: Final = 6
_SIZES: Final = (10, 80)
_START_SECONDS: Final = 240.0


@dataclass
class Report:
    """The result of a run; times in seconds."""

    seed: int
    injected: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    requests: int = 0
    evacuated: int = 0
    left: int = 0
    slowest_placement: float = 0.0
    settle_seconds: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Workload:
    """Keeps some batches running, through the front alone, from `start` to `stop`."""

    def __init__(self, stack: LocalStack, seed: int) -> None:
        self.sources: dict[str, bytes] = {}
        self.problems: list[str] = []
        self.slowest = 0.0
        self._stack = stack
        self._rng = random.Random(f"{seed} batches")  # noqa: S311
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        self._client = httpx.Client(base_url=stack.base_url, headers=headers, timeout=60)

    def start(self) -> None:
        """Start to submit."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the last submission."""
        self._stopping.set()
        self._thread.join()

    def status(self, batch: str) -> str:
        """Return the status of a batch; `away` while the front or no cell that has it answers."""
        try:
            answer = self._client.get(f"/v1/batches/{batch}")
        except httpx.TransportError:
            return "away"
        return str(answer.json()["status"]) if answer.status_code == 200 else "away"

    def listed(self) -> list[str]:
        """Return all batches that the front lists; none if it says that a cell is missing."""
        names: list[str] = []
        while True:
            after = {"after": names[-1]} if names else {}
            answer = self._client.get("/v1/batches", params={"limit": "100"} | after)
            if MISSING in answer.headers:
                return []
            page = answer.json()
            names += [each["id"] for each in page["data"]]
            if not page["has_more"]:
                return names

    def _run(self) -> None:
        try:
            self._feed()
        except Exception as error:  # noqa: BLE001 - the run goes on, and reports it at its end
            self.problems.append(f"the client failed: {error!r}")

    def _feed(self) -> None:
        while not self._stopping.is_set():
            live = [each for each in list(self.sources)[-_LIVE:] if self.status(each) not in FINAL]
            if len(live) >= _LIVE:
                self._stopping.wait(0.5)
                continue
            source = chat_file(self._rng.randint(*_SIZES))
            began = time.monotonic()
            with suppress(_Stopped):
                self.sources[self._submit(source)] = source
                self.slowest = max(self.slowest, time.monotonic() - began)

    def _submit(self, source: bytes) -> str:
        """Create a batch like a client that tries again, also with a new file if its cell is away."""
        while True:
            form = {"files": {"file": ("input.jsonl", source)}, "data": {"purpose": "batch"}}
            file = self._repeated(lambda: self._client.post("/v1/files", **form), times=1000)  # type: ignore[arg-type]  # noqa: B023
            body = {"input_file_id": "" if file is None else file["id"]}
            headers = {"Idempotency-Key": uuid4().hex}
            batch = self._repeated(
                lambda: self._client.post("/v1/batches", json=body, headers=headers),  # noqa: B023
                times=3,
            )
            if batch is not None:
                return str(batch["id"])

    def _repeated(self, call: Callable[[], httpx.Response], times: int) -> dict[str, object] | None:
        for _ in range(times):
            if self._stopping.is_set():
                raise _Stopped
            with suppress(httpx.TransportError):
                answer = call()
                if answer.status_code == 200:
                    value: dict[str, object] = answer.json()
                    return value
                # Only a cell that is away may refuse: 404 is that of a file whose cell is.
                assert answer.status_code in {404, 503}, answer.text
            time.sleep(0.3)
        return None


class _Stopped(Exception):
    """The workload is stopped."""


class Faults:
    """The faults, on cells in turn; each leaves all cells up."""

    def __init__(self, stack: LocalStack, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.evacuated = 0
        self.left = 0
        self._stack = stack
        self._rng = random.Random(f"{seed} faults")  # noqa: S311
        self._data = ("--data-dir", str(stack.data_dir))

    def inject(self) -> str:
        """Inject a fault and wait until its cells are up again; return its kind."""
        kinds = (self.kill, self.cut, self.evacuate, self.evacuate_cut, self.kill_front)
        kind = self._rng.choice(kinds)
        victim, target = self._rng.sample(range(CELLS), 2)
        kind(self._stack.installations[victim], self._stack.installations[target])
        name = kind.__name__
        self.done[name] += 1
        return name

    def kill(self, victim: LocalStack, _: LocalStack) -> None:
        """A cell dies, and is back after some seconds."""
        self._kill(victim)
        time.sleep(self._rng.uniform(0, 8))
        self._start(victim)

    def cut(self, victim: LocalStack, _: LocalStack) -> None:
        """Nobody reaches a cell, which goes on."""
        self._signal_router(victim, signal.SIGSTOP)
        time.sleep(self._rng.uniform(2, 10))
        self._signal_router(victim, signal.SIGCONT)

    def evacuate(self, victim: LocalStack, target: LocalStack) -> None:
        """A dead cell is evacuated, and comes back in the middle of it; the command is repeated."""
        self._kill(victim)
        thread = threading.Thread(target=self._evacuate, args=(victim, target))
        thread.start()
        time.sleep(self._rng.uniform(0, 4))
        self._start(victim)
        thread.join()
        self._evacuate(victim, target)

    def evacuate_cut(self, victim: LocalStack, target: LocalStack) -> None:
        """A cell that is cut off is evacuated while it goes on."""
        self._signal_router(victim, signal.SIGSTOP)
        self._evacuate(victim, target)
        self._signal_router(victim, signal.SIGCONT)

    def kill_front(self, _: LocalStack, __: LocalStack) -> None:
        """The front dies."""
        pid = next(
            each["pid"] for each in self._stack.status()["processes"] if each["name"] == "front"
        )
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def _evacuate(self, victim: LocalStack, target: LocalStack) -> None:
        number = str(self._stack.installations.index(target) + 1)
        settings = {
            "LOWTIDE_CELL": number,
            "LOWTIDE_CELLS": str(self._stack.data_dir / "cells.yaml"),
        }
        command = [
            LOWTIDE, "cells", "evacuate", victim.data_dir.name,
            "--bucket", (victim.data_dir / "objects").as_uri(),
            "--data-dir", str(target.data_dir), "--json",
        ]  # fmt: skip
        done = subprocess.run(
            command,
            env=clean_environment(settings),
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )
        # 1: some stay, as their own cell has not dropped them yet since the last evacuation.
        assert done.returncode in {0, 1}, done.stderr
        assert done.stdout, done.stderr
        counts = json.loads(done.stdout)["counts"]
        self.evacuated += counts["evacuated"]
        self.left += sum(counts[name] for name in ("still_here", "failed", "input_missing"))

    def _kill(self, victim: LocalStack) -> None:
        family = [victim.supervisor, *victim.supervisor.children(recursive=True)]
        lowtide("cells", "kill", victim.data_dir.name, *self._data)
        assert not any(
            each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family
        )

    def _start(self, victim: LocalStack) -> None:
        lowtide("cells", "start", victim.data_dir.name, *self._data, timeout=_START_SECONDS)
        victim.forget_connections()

    @staticmethod
    def _signal_router(victim: LocalStack, number: signal.Signals) -> None:
        pid = victim.program("router").pid
        assert pid is not None
        os.killpg(pid, number)


def run(seed: int, faults: int, bound: float, progress: Callable[[str], None]) -> Report:
    """Run chaos; every batch must end within `bound` seconds after the last fault."""
    report = Report(seed)
    began = time.monotonic()
    with running(SETTINGS, cells=CELLS) as stack:
        workload, injector = Workload(stack, seed), Faults(stack, seed)
        workload.start()
        for number in range(1, faults + 1):
            kind = injector.inject()
            progress(f"{time.monotonic() - began:5.0f} s  fault {number}: {kind}")
        workload.stop()
        healed = time.monotonic()
        report.injected = dict(injector.done)
        report.evacuated = injector.evacuated
        report.left = injector.left
        report.accepted = len(workload.sources)
        report.slowest_placement = round(workload.slowest, 2)
        report.violations = judge(stack, workload, bound)
        report.requests = sum(source.count(b"\n") for source in workload.sources.values())
        report.settle_seconds = round(time.monotonic() - healed, 1)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def judge(stack: LocalStack, workload: Workload, bound: float) -> list[str]:
    """Return what is wrong with the accepted batches."""
    violations = list(workload.problems)
    deadline = time.monotonic() + bound
    for batch, source in workload.sources.items():
        try:
            until(
                lambda: workload.status(batch) in FINAL,  # noqa: B023
                f"{batch} ends",
                within=max(1.0, deadline - time.monotonic()),
            )
            final = stack.batch(batch)
            output, errors = (
                stack.content(final[f"{role}_file_id"]) for role in ("output", "error")
            )
            oracle.check(final, source, output, errors, answers=simulated_answer)
        except AssertionError as error:
            violations.append(f"{batch}: {error}")
    try:
        until(
            lambda: not _elsewhere(stack, workload.sources), "each batch is in one cell", within=120
        )
    except AssertionError:
        violations += _elsewhere(stack, workload.sources)
    # On a busy machine, a cell may be late with a heartbeat.
    listed = until(workload.listed, "the list has all cells", within=60)
    if missing := set(workload.sources).difference(listed):
        violations.append(f"the list misses {sorted(missing)}")
    # A batch whose acceptance its client never learned of is listed, too.
    if listed != sorted(set(listed), reverse=True):
        violations.append("the list is not in order, or has a batch twice")
    return violations


def _elsewhere(stack: LocalStack, batches: Sequence[str] | dict[str, bytes]) -> list[str]:
    """Return the batches that are not in exactly one cell."""
    holders = Counter(
        f"batch_{row.id.hex}"
        for cell in stack.installations
        for row in cell.query("SELECT id FROM batches")
    )
    return [f"{batch} is in {holders[batch]} cells" for batch in batches if holders[batch] != 1]


def main() -> None:
    """Run chaos among cells and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.cells", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument(
        "--bound", type=float, default=420.0, help="seconds within which every batch must end"
    )
    options = parser.parse_args()
    report = run(
        options.seed, options.faults, options.bound, lambda line: print(line, file=sys.stderr)
    )
    print(json.dumps(asdict(report)))
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
