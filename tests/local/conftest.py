from __future__ import annotations

import itertools
import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from sqlalchemy import text

from lowtide.local.database import EmbeddedPostgres, engine
from lowtide.local.workloads import OVERLAY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
_NUMBERS = itertools.count()


def eventually(
    poll: Callable[[], T], accept: Callable[[T], object] = bool, *, within: float = 30.0
) -> T:
    """Poll until `accept` is true for the result, and return the result."""
    deadline = time.monotonic() + within
    while True:
        result = poll()
        if accept(result):
            return result
        assert time.monotonic() < deadline, f"still {result!r} after {within} s"
        time.sleep(0.02)


def is_reserved(port: int) -> bool:
    """Return whether a process has reserved a port."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("cluster"), settings={"fsync": "off"})
    server.start()
    yield server
    server.stop()


def write_overlay(root: Path, files: Mapping[str, str]) -> Path:
    """Write these files as the overlay that the runtime reads; return its folder."""
    folder = root / OVERLAY
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / "kustomization.yaml").write_text(f"resources: {json.dumps(list(files))}\n")
    return folder


def new_database(server: EmbeddedPostgres) -> str:
    """Create an empty database and return its URL as the superuser."""
    name = f"test_{next(_NUMBERS)}"
    with engine(server.superuser_url).connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return server.url("postgres", server.cluster.password, name)
