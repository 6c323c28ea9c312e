"""TCP ports of the loopback interface."""

from __future__ import annotations

import random
import socket
from collections import deque

import psutil

from lowtide.local.errors import PortInUse

HOST = "127.0.0.1"
# Below the ports that systems give to outgoing connections: those come and go all the time, and
# would take a port away between two starts of the process that it was chosen for.
_CHOICE = range(20_000, 32_768)
_given: deque[int] = deque(maxlen=1000)


def free_port() -> int:
    """Return a port that nothing listens on, and that this process was not given before.

    What it was chosen for may bind it later, and again after a crash: until then it looks free.
    """
    for port in random.sample(_CHOICE, len(_CHOICE)):
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _given.append(port)
        return port
    raise PortInUse("No port is free: too many programs listen on this machine.")


def require_free(port: int, hint: str) -> None:
    """Raise PortInUse, naming the process, when something listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortInUse(f"Port {port} is in use{_owner(port)}; stop it or {hint}.") from error


def _owner(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid is not None
            ):
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:  # other users' processes are hidden on some systems
        pass
    return ""
