"""SIGTERM during startup, as a container runtime sends it to PID 1 of a pod."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from lowtide.local.ports import HOST, free_port, release_ports
from tests.e2e.command import clean_environment
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
GUNICORN = [str(Path(sys.executable).parent / "gunicorn"), "-c", "python:lowtide.serving"]
PROGRAMS = {
    "infer_spot": [*GUNICORN, "functions_framework:create_app()"],
    "cancel_batch": [*GUNICORN, "functions_framework:create_app()"],
    "portal": [sys.executable, "-m", "portal"],
}
# Memory grows with imports and marks the progress: interpreter, server, our modules.
MEGABYTES = [0, 12, 24, 40]
NEW_PID_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--"]


def _can_create_pid_1() -> bool:
    if not (shutil.which("tini") and shutil.which("unshare")):
        return False
    return (
        subprocess.run([*NEW_PID_NAMESPACE, "true"], capture_output=True, check=False).returncode
        == 0
    )


pytestmark = pytest.mark.skipif(
    not _can_create_pid_1(), reason="needs `unshare --pid` and `tini` for a container's PID 1"
)


@contextmanager
def _started(name: str, init: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a program of the image like in a pod; yield it and its PID 1 as numbered outside."""
    ports = [free_port(), free_port(), free_port()]
    environment = clean_environment() | {
        "LOWTIDE_DATABASE_URL": f"postgresql://nobody:x@{HOST}:1/nothing",
        "LOWTIDE_PORTAL_SECRET": "x",
        "LOWTIDE_API_KEY_PEPPER": "x",
        "LOWTIDE_PORTAL_PORT": str(ports[0]),
        "LOWTIDE_HEALTH_PORT": str(ports[1]),
        "PORT": str(ports[2]),
        "HOST": HOST,
        "FUNCTION_SOURCE": str(ROOT / "functions" / name / "main.py"),
        "FUNCTION_TARGET": name,
        "FUNCTION_SIGNATURE_TYPE": "cloudevent" if name.startswith("infer") else "http",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    release_ports(*ports)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*NEW_PID_NAMESPACE, *init, *PROGRAMS[name]],
            env=environment,
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        try:
            outer = psutil.Process(process.pid)
            until(outer.children, "PID 1 runs", every=0.001)
            yield process, outer.children()[0].pid
        finally:
            process.kill()  # `--kill-child` kills the whole namespace with it
            process.wait()


def _megabytes(pid: int) -> float:
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return max(process.memory_info().rss for process in processes) / 1e6


@pytest.mark.parametrize("megabytes", MEGABYTES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_sigterm_during_startup_stops_process(name: str, megabytes: int) -> None:
    with _started(name, ["tini", "--"]) as (process, pid_1):
        until(
            lambda: _megabytes(pid_1) >= megabytes, f"it has {megabytes} MB", every=0.002, within=60
        )
        psutil.Process(pid_1).send_signal(signal.SIGTERM)
        # After a lost SIGTERM, a pod is killed at the end of its grace, for workers after minutes.
        process.wait(30)


def test_kernel_drops_sigterm_without_init() -> None:
    """Without an init, SIGTERM to a starting PID 1 is lost, and these tests would fail."""
    with _started("infer_spot", []) as (process, pid_1):
        psutil.Process(pid_1).send_signal(signal.SIGTERM)
        until(lambda: _megabytes(pid_1) >= MEGABYTES[-1], "the start continues", within=60)
        assert process.poll() is None
