from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lowtide.local.options import PortInUse
from lowtide.local.ports import free_port, hold_port, release_ports, require_free

from .conftest import is_reserved

RESERVERS, EACH = 12, 40
RESERVES = f"""
import sys
from lowtide.local.ports import free_port
sys.stdin.readline()
print(*[free_port() for _ in range({EACH})], flush=True)
sys.stdin.read()
"""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_error_of_port_in_use_names_process_and_remedy() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            require_free(port, "choose another: PORT=8090 make up")
    assert f"Port {port} is in use by pid {os.getpid()} (" in str(caught.value)
    assert "PORT=8090 make up" in str(caught.value)


def test_free_port_is_free() -> None:
    port = free_port()
    require_free(port, "nothing")
    release_ports(port)


def test_concurrent_processes_reserve_distinct_ports_until_exit() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RESERVES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(RESERVERS)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        ports = [
            [int(port) for port in process.stdout.readline().split()]
            for process in processes
            if process.stdout is not None
        ]
        all_ports = {port for each in ports for port in each}
        assert len(all_ports) == RESERVERS * EACH
        assert all(is_reserved(port) for port in all_ports)
        killed, *others = processes
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert not any(is_reserved(port) for port in ports[0])
        assert all(is_reserved(port) for each in ports[1:] for port in each)
        assert all(other.poll() is None for other in others)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_reserved_port_can_be_bound_and_is_freed_by_release() -> None:
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    assert is_reserved(port)
    release_ports(port)
    assert not is_reserved(port)
    release_ports(port)


def test_chosen_port_is_reserved_until_release() -> None:
    port = free_port()
    release_ports(port)
    hold_port(port)
    assert is_reserved(port)
    hold_port(port)
    release_ports(port)
    assert not is_reserved(port)


@pytest.mark.skipif(not EPHEMERAL.exists(), reason="needs Linux's port range")
def test_free_ports_are_outside_ephemeral_range() -> None:
    low, high = map(int, EPHEMERAL.read_text().split())
    ports = [free_port() for _ in range(300)]
    release_ports(*ports)
    assert len(set(ports)) == 300
    assert not [port for port in ports if low <= port <= high]
