"""TCP ports of the loopback interface, reserved across processes.

The UDP port of the same number is the reservation: the kernel binds it to one process at a time, of
any user, and frees it when that process ends or crashes. Nothing sends on it.
"""

from __future__ import annotations

import os
import random
import socket
from itertools import takewhile
from pathlib import Path

import psutil

from lowtide.local.options import PortInUse

HOST = "127.0.0.1"
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _LAST = 20_000, 65_535
_reserved: dict[int, int] = {}
"""Ports reserved by this process, with the file descriptor of each reservation."""


def free_port(*, following: int = 0) -> int:
    """Reserve a port that nothing listens on, until `release_ports` or the end of this process.

    The process that the port is for can bind it at any time, and again after a crash. With `following`,
    that many ports after it are reserved as well.
    """
    choice = _candidates()
    for port in random.sample(choice, len(choice)):
        ports = range(port, port + following + 1)
        reserved = list(takewhile(_reserve, ports))
        if len(reserved) == len(ports):
            return port
        release_ports(*reserved)
    raise PortInUse("No free port: too many ports are in use on this machine.")


def hold_port(port: int) -> None:
    """Reserve a port chosen by the user; no effect if another process has reserved it.

    A test, for instance, chooses the stack's port with `free_port` before it starts the stack.
    """
    _reserve(port, probe=False)


def release_ports(*ports: int) -> None:
    """Release reserved ports; ignores ports that this process did not reserve."""
    for port in ports:
        if (descriptor := _reserved.pop(port, None)) is not None:
            os.close(descriptor)


def require_free(port: int, hint: str) -> None:
    """Raise PortInUse, naming the process, if something listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortInUse(f"Port {port} is in use{_owner(port)}; stop it or {hint}.") from error


def _candidates() -> list[int]:
    """Return the ports outside the range of outgoing connections.

    An outgoing connection could take a port between two starts of a process.
    """
    try:
        low, high = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):  # not Linux: macOS and the BSDs begin at 49,152 or above
        low, high = 32_768, _LAST
    ports = [port for port in range(_FIRST, _LAST) if not low <= port <= high]
    return ports or list(range(_FIRST, _LAST))


def _reserve(port: int, *, probe: bool = True) -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as reservation, socket.socket() as listener:
        try:
            reservation.bind((HOST, port))
            if probe:
                listener.bind((HOST, port))
        except OSError:
            return False
        # A bare descriptor, as a socket object would warn that it was never closed.
        _reserved[port] = reservation.detach()
    return True


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
