"""A thread waits for a client no longer than the client's patience; what needs no wait is done."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

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
    """A connection whose client has used up the patience with it, and the client's end."""
    ours, theirs = socket.socketpair()
    served = ClientSocket(fileno=ours.detach())
    served.patience = Patience(1.0, timeout=1.0, rate=1.0)
    served.patience.waited(1.5, 1)  # a byte that came late
    with served, theirs:
        yield served, theirs


def test_a_client_without_patience_left_is_still_told_so(
    ends: tuple[ClientSocket, socket.socket],
) -> None:
    served, theirs = ends
    with pytest.raises(ClientTooSlow):
        served.recv(1)
    served.sendall(b"408")
    assert theirs.recv(10) == b"408"


def test_while_all_threads_are_taken_a_client_must_be_quicker() -> None:
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


def test_nothing_waits_for_room_once_the_patience_is_used_up(
    ends: tuple[ClientSocket, socket.socket],
) -> None:
    served, _ = ends
    with pytest.raises(ClientTooSlow):
        served.sendall(bytes(64 << 20))
