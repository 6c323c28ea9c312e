"""A thread waits for a client no longer than the client's patience; what needs no wait is done."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from lowtide.connections import ClientSocket, ClientTooSlow
from lowtide.http.patience import Patience

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


def test_nothing_waits_for_room_once_the_patience_is_used_up(
    ends: tuple[ClientSocket, socket.socket],
) -> None:
    served, _ = ends
    with pytest.raises(ClientTooSlow):
        served.sendall(bytes(64 << 20))
