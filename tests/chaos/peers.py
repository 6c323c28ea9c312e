"""Which worker is at the other end of a local connection: engines see through it whom they serve."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

_LOOPBACK = "0100007F"
_FRESH = 1.0  # seconds that a look at the process table is good for


class Peers:
    """The workers of the stack in `data_dir`, by the local port of their connections."""

    def __init__(self, data_dir: Path) -> None:
        self._state = data_dir / "state.json"
        self._processes: dict[int, str] = {}
        self._looked = 0.0

    def worker_at(self, port: int) -> tuple[str, int]:
        """Return name and pid of the worker that connects from `port`; `("", 0)` for anybody else."""
        inode = _inode(port)
        if inode is None:
            return ("", 0)
        for again in (False, True):
            for pid, name in self._workers(again=again).items():
                if _holds(pid, inode):
                    return (name, pid)
        return ("", 0)

    def _workers(self, *, again: bool) -> dict[int, str]:
        if again or time.monotonic() - self._looked > _FRESH:
            with suppress(OSError, ValueError, KeyError):
                self._processes = self._look()
            self._looked = time.monotonic()
        return self._processes

    def _look(self) -> dict[int, str]:
        state = json.loads(self._state.read_bytes())
        leaders = {
            one["pid"]: one["name"]
            for one in state["processes"]
            if one["pid"] and one["name"].startswith("infer-")
        }
        found = {}
        for entry in os.listdir("/proc"):  # noqa: PTH208 - names alone, and often
            if entry.isdecimal():
                with suppress(OSError):
                    group = os.getpgid(int(entry))
                    if group in leaders:
                        found[int(entry)] = leaders[group]
        return found


def _inode(port: int) -> str | None:
    wanted = f"{_LOOPBACK}:{port:04X}"
    with Path("/proc/net/tcp").open() as table:
        for line in table:
            fields = line.split()
            if fields[1] == wanted:
                return fields[9]
    return None


def _holds(pid: int, inode: str) -> bool:
    wanted = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        for descriptor in os.listdir(folder):  # noqa: PTH208
            with suppress(OSError):
                if os.readlink(f"{folder}/{descriptor}") == wanted:  # noqa: PTH115
                    return True
    return False
