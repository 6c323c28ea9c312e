"""Bytes that are no PostgreSQL protocol count as a lost connection, and not as a bug."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from lowtide.core.errors import Unavailable
from lowtide.database.connections import begin, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Database

NOISE = bytes(64)


class Relay:
    """Relay bytes to a server; while `garble` is set, its answers are replaced by noise."""

    def __init__(self, server: int) -> None:
        self._server = server
        self.garble = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            self._sockets += [client, server]
            for one, other, answers in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._pass, args=(one, other, answers))
                self._threads.append(thread)
                thread.start()

    def _pass(self, one: socket.socket, other: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(NOISE if answers and self.garble else data)

    def close(self) -> None:
        """Close every connection."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()


@contextmanager
def relayed(url: str) -> Iterator[tuple[Relay, str]]:
    """Yield a relay to a database, and the database's URL through it."""
    address = make_url(url)
    assert address.port is not None
    relay = Relay(address.port)
    try:
        yield relay, address.set(port=relay.port).render_as_string(hide_password=False)
    finally:
        relay.close()


@pytest.mark.parametrize("when", ["connecting", "executing"])
def test_noise_counts_as_lost_connection(database: Database, when: str) -> None:
    with relayed(database.url("worker")) as (relay, url):
        engine = connect(url, timeout=10)
        try:
            if when == "executing":
                with begin(engine) as connection:
                    connection.execute(text("SELECT 1"))
            relay.garble = True
            with pytest.raises(Unavailable), begin(engine) as connection:
                connection.execute(text("SELECT 1"))
            relay.garble = False
            with begin(engine) as connection:
                assert connection.scalar(text("SELECT 2")) == 2
        finally:
            engine.dispose()
