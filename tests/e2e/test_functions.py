"""Every function runs under the plain `functions-framework` command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from lowtide.local.ports import free_port
from tests.e2e.command import clean_environment
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = Path(__file__).parents[2] / "functions"
HTTP = {"upload", "create_batch", "cancel_batch", "read"}
FRONT = {"front"}
EVENT = {"split", "finalize", "schedule", "infer_spot", "infer_dedicated"}


def test_every_function_is_listed() -> None:
    assert {path.parent.name for path in FUNCTIONS.glob("*/main.py")} == HTTP | FRONT | EVENT


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of the function named by the parameter."""
    name, port = request.param, free_port()
    cells = tmp_path / "cells.yaml"
    cells.write_text("cells: [{number: 1, name: one, url: 'http://127.0.0.1:1', region: here}]")
    server = subprocess.Popen(
        [
            Path(sys.executable).with_name("functions-framework"),
            *("--source", FUNCTIONS / name / "main.py", "--target", name),
            *("--signature-type", "cloudevent" if name in EVENT else "http"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        # Functions connect to the database on first use only; the cell of the front is away.
        env=clean_environment()
        | {
            "LOWTIDE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "LOWTIDE_CELLS": str(cells),
            "LOWTIDE_CELLS_TOKEN": "token",
        },
        cwd=FUNCTIONS.parent,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: server.poll() is not None or _listens(url), f"{name} answers")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _listens(url: str) -> bool:
    try:
        httpx.get(url, timeout=5)
    except httpx.TransportError:
        return False
    return True


@pytest.mark.parametrize("address", sorted(HTTP), indirect=True)
def test_http_function_returns_openai_error_for_unknown_url(
    address: str, request: pytest.FixtureRequest
) -> None:
    if "read" in request.node.name:
        health = httpx.get(f"{address}/health/live", timeout=10)
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
    response = httpx.post(f"{address}/nowhere", timeout=10)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("address", sorted(FRONT), indirect=True)
def test_front_without_cells_lives_and_is_not_ready(address: str) -> None:
    assert httpx.get(f"{address}/health/live", timeout=10).status_code == 200
    for path in ("/health/ready", "/v1/batches", "/nowhere"):
        response = httpx.get(f"{address}{path}", timeout=10)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "unavailable"


@pytest.mark.parametrize("address", sorted(EVENT), indirect=True)
def test_event_function_accepts_events_only(address: str) -> None:
    assert httpx.get(address, timeout=10).status_code == 405
    assert httpx.post(address, json={}, timeout=10).status_code == 400
