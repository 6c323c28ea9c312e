from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.database.connections import sqlstate
from lowtide.local.database import EmbeddedPostgres, engine
from lowtide.local.options import StartFailed

if TYPE_CHECKING:
    from pathlib import Path


def test_data_and_port_survive_kill_and_restart(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    server.start()
    try:
        port = server.port
        database = engine(server.superuser_url)
        with database.connect() as connection:
            connection.execute(text("CREATE TABLE kept AS SELECT 42 AS answer"))
        server.kill()
        server.start()
        assert server.port == port
        with database.connect() as connection:
            assert connection.scalar(text("SELECT answer FROM kept")) == 42
    finally:
        server.stop()
    assert not [p for p in psutil.process_iter() if _folder(p).startswith(str(tmp_path))]


def _folder(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


def test_parent_folder_keeps_its_mode(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    server = EmbeddedPostgres(home / "share", settings={"fsync": "off"})
    for _ in range(2):
        server.start()
        try:
            with engine(server.superuser_url).connect() as connection:
                assert connection.scalar(text("SELECT 42")) == 42
        finally:
            server.stop()
    assert home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fsync", "off"),
        ("synchronous_commit", "on"),
        ("max_connections", "200"),
        ("jit", "off"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
    ],
)
def test_settings_reach_the_server(server: EmbeddedPostgres, setting: str, value: str) -> None:
    with engine(server.superuser_url).connect() as connection:
        assert connection.scalar(text("SELECT current_setting(:s)"), {"s": setting}) == value


def test_wrong_password_is_rejected(server: EmbeddedPostgres) -> None:
    with (
        pytest.raises(DBAPIError) as caught,
        engine(server.url("postgres", "wrong", "postgres")).connect(),
    ):
        pass
    assert sqlstate(caught.value) == "28P01"


def test_password_of_another_stack_is_reported(server: EmbeddedPostgres) -> None:
    cluster, right = server.cluster, server.cluster.password
    cluster.password = "wrong"
    try:
        with pytest.raises(StartFailed, match="belong to different stacks"):
            cluster.answers(server.port)
    finally:
        cluster.password = right


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")
def test_root_runs_the_server_as_another_user(server: EmbeddedPostgres) -> None:
    assert psutil.Process(server.pid).uids().real != 0
