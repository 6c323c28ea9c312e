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

from .conftest import reserved

RESERVERS, EACH = 12, 40
RESERVES = f"""
import sys
from lowtide.local.ports import free_port
sys.stdin.readline()
print(*[free_port() for _ in range({EACH})], flush=True)
sys.stdin.read()
"""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_port_in_use_names_the_process_and_the_way_out() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            require_free(port, "choose another: PORT=8090 make up")
    assert f"Port {port} is in use by pid {os.getpid()} (" in str(caught.value)
    assert "PORT=8090 make up" in str(caught.value)


def test_a_free_port_is_free() -> None:
    port = free_port()
    require_free(port, "nothing")
    release_ports(port)


def test_processes_that_reserve_at_once_get_ports_of_their_own_until_they_end() -> None:
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
        taken = {port for each in ports for port in each}
        assert len(taken) == RESERVERS * EACH
        assert all(reserved(port) for port in taken)
        ended, *others = processes
        ended.send_signal(signal.SIGKILL)
        ended.wait()
        assert not any(reserved(port) for port in ports[0])
        assert all(reserved(port) for each in ports[1:] for port in each)
        assert all(other.poll() is None for other in others)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_reserved_port_can_be_bound_and_is_given_again_only_after_its_release() -> None:
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    assert reserved(port)
    release_ports(port)
    assert not reserved(port)
    release_ports(port)


def test_a_port_that_a_person_chose_is_kept_from_others() -> None:
    port = free_port()
    release_ports(port)
    hold_port(port)
    assert reserved(port)
    hold_port(port)
    release_ports(port)
    assert not reserved(port)


@pytest.mark.skipif(not EPHEMERAL.exists(), reason="reads Linux's range")
def test_no_outgoing_connection_can_take_a_port() -> None:
    low, high = map(int, EPHEMERAL.read_text().split())
    ports = [free_port() for _ in range(300)]
    release_ports(*ports)
    assert len(set(ports)) == 300
    assert not [port for port in ports if low <= port <= high]
