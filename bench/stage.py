"""The environment of benchmarks: a database, an object store, functions and measured processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from lowtide.local.bootstrap import addresses, bootstrap
from lowtide.local.database import EmbeddedPostgres
from lowtide.local.files import SUPERUSER, Secrets, read_or_create
from lowtide.local.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent


class Stage:
    """An embedded, migrated PostgreSQL with durable settings, and a directory as object store.

    `settings` are further server settings, `variables` those of our processes.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] = {},
        *,
        variables: Mapping[str, str] = {},
    ) -> None:
        self.folder = folder
        self._variables = variables
        self.secrets: Secrets = read_or_create(folder)
        self.server = EmbeddedPostgres(
            folder, password=self.secrets.passwords[SUPERUSER], settings=settings
        )

    def __enter__(self) -> Stage:
        self.server.start()
        bootstrap(self.server.cluster, self.server.port, self.secrets)
        self._urls = addresses(self.server.cluster, self.server.port, self.secrets)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()

    def url(self, role: str) -> str:
        """Return the database URL for a role such as `api`, `worker` or `owner`."""
        return self._urls.migration if role == "owner" else self._urls.by_role[f"lowtide_{role}"]

    def environment(self, role: str) -> dict[str, str]:
        """Return the environment of a process that acts as `role`."""
        return {
            **{name: value for name, value in os.environ.items() if name[:8] != "LOWTIDE_"},
            "PYTHONPATH": str(ROOT),
            "HOST": HOST,
            "LOWTIDE_DATABASE_URL": self.url(role),
            "LOWTIDE_API_KEY_PEPPER": self.secrets.api_key_pepper,
            "LOWTIDE_OBJECT_STORE_URL": f"file://{self.folder}/objects",
            **self._variables,
        }

    @contextmanager
    def function(
        self, name: str, role: str, *, signature: str = "http", **settings: str
    ) -> Iterator[Function]:
        """Serve one function with gunicorn, as its manifest does."""
        port, health = free_port(), free_port()
        environment = {
            **self.environment(role),
            "PORT": str(port),
            "LOWTIDE_HEALTH_PORT": str(health),
            "FUNCTION_SOURCE": str(ROOT / "functions" / name / "main.py"),
            "FUNCTION_TARGET": name,
            "FUNCTION_SIGNATURE_TYPE": signature,
            **settings,
        }
        command = [
            sys.executable, "-m", "gunicorn", "-c", "python:lowtide.serving",
            "functions_framework:create_app()",
        ]  # fmt: skip
        process = subprocess.Popen(command, env=environment, cwd=ROOT)  # noqa: S603
        try:
            _wait_until_ready(f"http://{HOST}:{health}/health/ready", process)
            (worker,) = psutil.Process(process.pid).children()
            yield Function(port, worker)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def measured(
        self, module: str, *arguments: str, role: str = "worker", **settings: str
    ) -> dict[str, Any]:
        """Run a module in its own process; return the JSON of its last line."""
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", module, *arguments],
            env={**self.environment(role), **settings},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


class Function:
    """A served function; the figures are of its gunicorn worker."""

    def __init__(self, port: int, worker: psutil.Process) -> None:
        self.port = port
        self._worker = worker

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        used = self._worker.cpu_times()
        return float(used.user + used.system)

    def peak_megabytes(self) -> float:
        """Return the peak resident memory in MB."""
        return peak_megabytes(self._worker.pid)


def peak_megabytes(pid: int | str = "self") -> float:
    """Return the peak resident memory of a process, in MB of 1,000,000 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("This benchmark needs Linux: /proc/PID/status has no VmHWM.")


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("The function did not start.") from None
        time.sleep(0.05)
