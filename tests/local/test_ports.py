from __future__ import annotations

import os
import socket

import pytest

from lowtide.local.errors import PortInUse
from lowtide.local.ports import free_port, require_free


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
    require_free(free_port(), "nothing")


def test_no_port_is_given_twice_although_nobody_has_bound_it_yet() -> None:
    ports = [free_port() for _ in range(300)]
    assert len(set(ports)) == 300
    assert max(ports) < 32_768, "from here on systems choose ports for outgoing connections"
