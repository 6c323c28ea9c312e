"""Client connections: patience bounds every wait, and immediate I/O always succeeds."""

from __future__ import annotations

import socket
from itertools import count
from typing import TYPE_CHECKING

import pytest

from lowtide.http import connections
from lowtide.http.connections import (
    CROWDED_RATE,
    CROWDED_SECONDS,
    ClientSocket,
    ClientTooSlow,
    Patience,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[ClientSocket, socket.socket]]:
    """The server's end of a connection without patience left, and the client's end."""
    server_end, client = socket.socketpair()
    server = ClientSocket(fileno=server_end.detach())
    server.patience = Patience(1.0, timeout=1.0, rate=1.0)
    server.patience.waited(1.5, 1)  # a late byte
    with server, client:
        yield server, client


def test_error_response_is_sent_without_patience_left(
    ends: tuple[ClientSocket, socket.socket],
) -> None:
    server, client = ends
    with pytest.raises(ClientTooSlow):
        server.recv(1)
    server.sendall(b"408")
    assert client.recv(10) == b"408"


def test_crowded_server_demands_faster_clients() -> None:
    crowd: list[str] = []
    patience = Patience(5.0, timeout=60.0, rate=1000.0, crowded=lambda: bool(crowd))
    patience.earn()
    patience.waited(10.0, 20_000)
    assert patience.left == 60.0
    crowd.append("a request")
    patience.waited(1.0, 1000)
    assert patience.left == CROWDED_SECONDS
    patience.waited(1.0, int(2 * CROWDED_RATE))
    assert patience.left == CROWDED_SECONDS
    patience.waited(CROWDED_SECONDS, 2000)
    assert patience.left == pytest.approx(0, abs=0.01)
    crowd.clear()
    patience.waited(1.0, 11_000)
    assert patience.left == pytest.approx(10, abs=0.01)


def test_send_to_full_buffer_fails_without_patience_left(
    ends: tuple[ClientSocket, socket.socket],
) -> None:
    server, _ = ends
    with pytest.raises(ClientTooSlow):
        server.sendall(bytes(64 << 20))


def test_clients_do_not_pay_for_busy_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that gets its turn a second after each call charges it to no client."""
    seconds = count()
    monkeypatch.setattr(connections, "monotonic", lambda: float(next(seconds)))
    server_end, client = socket.socketpair()
    with ClientSocket(fileno=server_end.detach()) as server, client:
        server.patience = patience = Patience(2.5, timeout=2.5, rate=1.0)
        for _ in range(4):
            client.sendall(b"x")
            assert server.recv(10) == b"x"
            server.sendall(b"y")
        assert patience.left == 2.5
        with pytest.raises(ClientTooSlow):
            server.recv(10)
