"""`.ci/run` with a stub of `make` that records its calls."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
INSTALLED = ("curl", "chromium", "promtool", "amtool")
# Not in Bash, which may lose a signal while it starts a program.
MAKE = f"""#!{sys.executable} -S
import os, re, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
target = sys.argv[1]
lane = "".join(re.findall("cache-[a-z]*", os.environ.get("PYTEST_ADDOPTS", "")))
def record(text):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(text + "\\n")
record(f"{{target}} {{lane}}")
print(f"output of {{target}} {{lane}}", flush=True)
if os.environ["HANGS"] == target:
    signal.sigwait([signal.SIGINT])
    record(f"stopped {{lane}}")
sys.exit(target in (os.environ["FAILS"], os.environ["HANGS"]))
"""
LANES = ["test cache-fast", "test-slow cache-slow", "test-slow cache-stacks"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a copy of the script with stub programs that record calls in `calls`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in INSTALLED:
        (programs / name).write_text("#!/bin/sh\n")
    (programs / "make").write_text(MAKE)
    (programs / "npm").write_text("#!/bin/sh\n")
    for path in programs.iterdir():
        path.chmod(0o755)
    script = tmp_path / "checkout" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    (tmp_path / "work").mkdir()

    def start(*, fails: str = "", hangs: str = "") -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "TMPDIR": str(tmp_path / "work"),
            "CALLS": str(tmp_path / "calls"),
            "FAILS": fails,
            "HANGS": hangs,
        }
        return subprocess.Popen(
            [script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


@pytest.mark.parametrize("fails", ["", "test", "test-slow"])
def test_every_lane_runs_once_and_failure_fails_the_run(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path, fails: str
) -> None:
    process = run(fails=fails)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (1 if fails else 0), output
    before = ["azurite ", "check ", "llama "]
    assert sorted((tmp_path / "calls").read_text().splitlines()) == [*before, *LANES]
    assert all(f"output of {lane}" in output for lane in LANES)
    assert list((tmp_path / "work").iterdir()) == []


def test_failed_check_stops_the_run(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = run(fails="check")
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert (tmp_path / "calls").read_text().splitlines() == ["check "]


def test_interrupted_run_stops_lanes_and_cleans_up(
    run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = run(hangs="test-slow")
    calls = tmp_path / "calls"
    deadline = time.monotonic() + 60
    while not calls.exists() or len(calls.read_text().splitlines()) < 3 + len(LANES):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = [line for line in calls.read_text().splitlines() if line.startswith("stopped")]
    assert sorted(stopped) == ["stopped cache-slow", "stopped cache-stacks"]
    assert list((tmp_path / "work").iterdir()) == []
