"""The chaos engine knows the worker behind each connection."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.chaos.control import HOST
from tests.chaos.peers import Peers

if TYPE_CHECKING:
    from pathlib import Path

NAME = "infer-spot-1"


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    """The peers of a stack whose only worker is this process."""
    state = {"processes": [{"pid": os.getpgid(0), "name": NAME}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    return Peers(tmp_path)


def _connect(server: socket.socket, port: int = 0) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((HOST, port))
    client.connect(server.getsockname())
    return client


def test_closed_connections_from_the_same_port_hide_no_worker(peers: Peers) -> None:
    # The order of the kernel's table is arbitrary: one of many is before the worker's connection.
    with ExitStack() as stack:
        engine, *others = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(9)]
        worker = stack.enter_context(_connect(engine))
        port = worker.getsockname()[1]
        for other in others:
            _connect(other, port).close()
            other.accept()[0].close()
        assert peers.worker_at(port, engine.getsockname()[1]) == (NAME, os.getpid())
