"""The chaos engine answers correctly, misbehaves on command and records its executions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from lowtide.local.ports import free_port
from tests.chaos.control import HOST, Helper
from tests.chaos.engine import FOREIGN
from tests.chaos.exchange import MODEL, POISON, Request, answer
from tests.chaos.verdict import read_executions
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BODY = Request("t/1/1").body()


class Server:
    """The engine in its own process."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "executions.jsonl"
        self.helper = Helper.start(
            "tests.chaos.engine", [folder, self.log, str(self.port), MODEL], folder / "engine.log"
        )
        self.client = httpx.Client(base_url=f"http://{HOST}:{self.port}", timeout=10)

    def ask(self, body: object = BODY) -> httpx.Response:
        """Post a request to the engine."""
        return self.client.post("/v1/chat/completions", json=body)

    def close(self) -> None:
        """Stop the engine."""
        self.client.close()
        self.helper.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("engine"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _healed(server: Server) -> Iterator[None]:
    yield
    server.helper.order(mode="heal", target="*", seconds=0)


def test_healthy_engine_answers_and_records_execution(server: Server) -> None:
    assert server.ask().json() == answer(BODY)
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/v1/models").json()["data"][0]["id"] == BODY["model"]
    until(
        lambda: [one for one in read_executions(server.log) if one.outcome == "200"],
        "the execution is recorded",
        within=5,
    )


def test_request_for_another_model_is_refused_and_recorded(server: Server) -> None:
    response = server.ask(Request("t/1/2", model="another").body())
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    until(
        lambda: (
            "t/1/2" in {one.marker for one in read_executions(server.log) if one.outcome == FOREIGN}
        ),
        "the refusal is recorded",
        within=5,
    )


@pytest.mark.parametrize("mode", ["heal", "slow", "huge"])
def test_poison_request_fails_in_every_mode(server: Server, mode: str) -> None:
    server.helper.order(mode=mode, target="*", seconds=60)
    assert server.ask({**BODY, POISON: 400}).status_code == 400


@pytest.mark.parametrize(
    ("mode", "status", "after"),
    [
        ("500", 500, None),
        ("401", 401, None),
        ("529", 529, None),
        ("429", 429, None),
        ("503_retry_after", 503, "2"),
        ("wrong_model", 404, None),
        ("liar", 500, None),
    ],
)
def test_mode_sets_status_and_retry_after(
    server: Server, mode: str, status: int, after: str | None
) -> None:
    server.helper.order(mode=mode, target="*", seconds=60)
    response = server.ask()
    assert (response.status_code, response.headers.get("Retry-After")) == (status, after)
    healthy = server.client.get("/health").status_code == 200
    assert healthy == (mode in {"liar", "wrong_model"})


@pytest.mark.parametrize("mode", ["down", "reset", "reset_mid", "not_http"])
def test_mode_breaks_connection(server: Server, mode: str) -> None:
    server.helper.order(mode=mode, target="*", seconds=60)
    with pytest.raises(httpx.TransportError):
        server.ask()


@pytest.mark.parametrize("mode", ["garbage", "error_in_200", "null_in_200"])
def test_mode_returns_200_without_valid_answer(server: Server, mode: str) -> None:
    server.helper.order(mode=mode, target="*", seconds=60)
    response = server.ask()
    assert response.status_code == 200
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    assert body is None or "error" in body


def test_fault_affects_only_targeted_worker(server: Server) -> None:
    server.helper.order(mode="500", target="infer-spot-9", seconds=60)
    assert server.ask().status_code == 200


def test_fault_ends_after_its_seconds(server: Server) -> None:
    server.helper.order(mode="down", target="*", seconds=0.5)

    def is_healthy() -> bool:
        try:
            return server.ask().status_code == 200
        except httpx.TransportError:
            return False

    assert not is_healthy()
    until(is_healthy, "the port is open again", within=20)
