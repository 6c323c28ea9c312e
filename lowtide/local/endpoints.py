"""Where each service listens at the moment: written by the supervisor, read by router and broker."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec

from lowtide.local.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

NAME = "endpoints.json"


def write(data_dir: Path, addresses: Mapping[str, Sequence[str]]) -> None:
    """Publish the base URLs of every service's ready replicas."""
    write_atomically(data_dir / NAME, msgspec.json.encode(addresses), mode=0o600)


class Endpoints:
    """A live view of the file, with one round-robin per service."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / NAME
        self._seen = (0, 0)
        self._addresses: dict[str, list[str]] = {}
        self._turns: dict[str, Iterator[int]] = {}

    def pick(self, service: str) -> str | None:
        """Return the base URL of one ready replica of `service`, in turn; None if there is none."""
        self._refresh()
        addresses = self._addresses.get(service)
        if not addresses:
            return None
        turn = next(self._turns.setdefault(service, itertools.count()))
        return addresses[turn % len(addresses)]

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        # The inode tells two writes within one clock tick apart.
        seen = (stat.st_mtime_ns, stat.st_ino)
        if seen != self._seen:
            self._addresses = msgspec.json.decode(
                self._path.read_bytes(), type=dict[str, list[str]]
            )
            self._seen = seen
