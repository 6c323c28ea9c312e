"""A lost connection closes its socket immediately, not when its traceback is collected."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.errors import Unavailable
from lowtide.database.connections import begin, connect
from lowtide.local.database import engine as without_pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from tests.conftest import Database


def test_socket_is_closed_when_server_terminates_backend(database: Database) -> None:
    engine, other = connect(database.url("worker"), timeout=10), connect(database.url("worker"))
    lost: list[socket.socket] = []

    def lose_connection() -> None:
        with begin(engine) as connection:
            driver: Any = connection.connection.dbapi_connection
            lost.append(driver._usock)
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            with begin(other) as admin:
                admin.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            connection.execute(text("SELECT 1"))

    try:
        with pytest.raises(Unavailable) as caught:
            lose_connection()
        assert lost[0].fileno() == -1
        assert caught.tb is not None, "the traceback still references the connection"
    finally:
        engine.dispose()
        other.dispose()


@pytest.mark.parametrize("make", [connect, without_pool], ids=["pooled", "without a pool"])
def test_socket_is_closed_when_server_hangs_up_at_start(make: Callable[..., Engine]) -> None:
    received: list[bytes] = []

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.settimeout(10)
            client.recv(1 << 16)
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(1 << 16):
                received.append(data)
            received.append(b"")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        url = f"postgresql://someone:secret@127.0.0.1:{listener.getsockname()[1]}/any"
        engine = make(url, timeout=10)
        with pytest.raises(Unavailable) as caught, begin(engine):
            pytest.fail("the server does not answer")
        server.join()
        assert received[-1:] == [b""]
        assert caught.tb is not None
        engine.dispose()
