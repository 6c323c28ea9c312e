"""The worker at the other end of a local connection."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

_LOOPBACK = "0100007F"
_ATTEMPTS = 4
_FRESH = 1.0  # seconds that a scan of the process table is valid


class Peers:
    """The workers of the stack in `data_dir`, by the two ports of their connections."""

    def __init__(self, data_dir: Path) -> None:
        self._state = data_dir / "state.json"
        self._processes: dict[int, str] = {}
        self._scanned_at = 0.0

    def worker_at(self, port: int, server: int) -> tuple[str, int]:
        """Return the name and pid of the worker that is connected from `port` to port `server`.

        Others are `("", 0)`.
        """
        # While connections come and go, the kernel's table may skip one that is there. An engine
        # that is broken for one worker would answer that worker's probe well.
        for attempt in range(_ATTEMPTS):
            if (inode := _inode(port, server)) is None:
                continue
            for pid, name in self._workers(rescan=attempt > 0).items():
                if _has_socket(pid, inode):
                    return (name, pid)
        return ("", 0)

    def _workers(self, *, rescan: bool) -> dict[int, str]:
        if rescan or time.monotonic() - self._scanned_at > _FRESH:
            with suppress(OSError, ValueError, KeyError):
                self._processes = self._scan()
            self._scanned_at = time.monotonic()
        return self._processes

    def _scan(self) -> dict[int, str]:
        state = json.loads(self._state.read_bytes())
        leaders = {
            one["pid"]: one["name"]
            for one in state["processes"]
            if one["pid"] and one["name"].startswith("infer-")
        }
        workers = {}
        for entry in os.listdir("/proc"):  # noqa: PTH208 - names only, for speed
            if entry.isdecimal():
                with suppress(OSError):
                    group = os.getpgid(int(entry))
                    if group in leaders:
                        workers[int(entry)] = leaders[group]
        return workers


def _inode(port: int, server: int) -> str | None:
    # Connections to several servers may share one local port, those that are closed included: only
    # both ends name one connection.
    expected = [f"{_LOOPBACK}:{port:04X}", f"{_LOOPBACK}:{server:04X}"]
    with Path("/proc/net/tcp").open() as table:
        for line in table:
            fields = line.split()
            if fields[1:3] == expected:
                return fields[9]
    return None


def _has_socket(pid: int, inode: str) -> bool:
    expected = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        for descriptor in os.listdir(folder):  # noqa: PTH208
            with suppress(OSError):
                if os.readlink(f"{folder}/{descriptor}") == expected:  # noqa: PTH115
                    return True
    return False
