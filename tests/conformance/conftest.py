"""The server of the whole suite: its own local stack, or the one that `--base-url` names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.conformance.engine import commanded_engine
from tests.conformance.lines import REFUSE, held, jsonl, request
from tests.conformance.server import AsyncOfficial, Own, Server, SyncOfficial
from tests.e2e.stacks import running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.server import Official

FOLDER = Path(__file__).parent
SETTINGS = {
    "LOWTIDE_MAX_FILE_BYTES": "1000000",
    "LOWTIDE_MAX_BATCH_LINES": "200",
    "LOWTIDE_MAX_LINE_BYTES": "50000",
    "LOWTIDE_ENGINE": "openai",
    "LOWTIDE_SPOT_REPLICAS": "1",
    "LOWTIDE_DEDICATED_REPLICAS": "0",
    "LOWTIDE_WORKER_POLL_CAP": "0.5",
    "LOWTIDE_CANCEL_GRACE": "3",
    "LOWTIDE_MAX_ATTEMPTS": "1",
}
OUTPUT_EXPIRY = 7200
ANSWERED = [request(f"answered-{number}") for number in range(5)]
NEVER_REACHED = [request(f"last-{number}") for number in range(5)]
EXPIRING = jsonl(*ANSWERED, *held("expiring", 2))


@dataclass(frozen=True)
class Ended:
    """An ended batch: its observed states, its input, its output and its errors."""

    history: list[dict[str, Any]]
    source: bytes
    output: bytes
    errors: bytes

    @property
    def batch(self) -> dict[str, Any]:
        """The last observed state."""
        return self.history[-1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that point the suite at any server."""
    group = parser.getgroup("conformance")
    group.addoption("--base-url", default="", help="a server's URL, without /v1")
    group.addoption("--api-key", default="", help="a key of that server")
    group.addoption(
        "--cells",
        default=0,
        type=int,
        help="run the suite's own server as this many cells and a front",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the suite as slow, and run the tests that wait for a deadline last."""
    places = [place for place, item in enumerate(items) if item.path.is_relative_to(FOLDER)]
    ours = sorted(
        (items[place] for place in places),
        key=lambda item: "expired" in getattr(item, "fixturenames", ()),
    )
    for place, item in zip(places, ours, strict=True):
        item.add_marker(pytest.mark.slow)
        items[place] = item


@pytest.fixture(scope="package")
def server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """The server under test."""
    url = pytestconfig.getoption("base_url", default="")
    if url:
        key = pytestconfig.getoption("api_key", default="")
        external = Server(url.rstrip("/").removesuffix("/v1"), key)
        yield external
        external.close()
        return
    with commanded_engine() as engine:
        settings = {**SETTINGS, "LOWTIDE_ENGINE_URL": engine.url}
        cells = pytestconfig.getoption("cells", default=0)
        with running(settings, cells=cells) as stack:
            own_server = Server(stack.base_url, stack.api_key)
            expiring = own_server.create(EXPIRING, completion_window="1m")
            own_server.own = Own(stack, engine, expiring)
            yield own_server
            own_server.close()
            # A stopping worker waits for its running requests.
            engine.release()


@pytest.fixture(scope="package")
def own(server: Server) -> Own:
    """The suite's own stack; skips the test on an external server."""
    if server.own is None:
        pytest.skip("needs the suite's own stack")
    return server.own


@pytest.fixture(scope="package", params=[SyncOfficial, AsyncOfficial], ids=["sync", "async"])
def official(request: pytest.FixtureRequest, server: Server) -> Iterator[Official]:
    """OpenAI's client; each test runs with the sync and the async one."""
    client: Official = request.param(server)
    yield client
    client.close()


@pytest.fixture(scope="package")
def completed(server: Server) -> Ended:
    """A completed batch; the suite's own engine refuses a quarter of its requests."""
    prompts = ["How high?", REFUSE if server.own else "Why?", "When?", "Where?"] * 3
    # A search finds only these, also on a server with the batches of other runs.
    run = uuid4().hex
    source = jsonl(
        *(request(f"{run}-{number}", prompt) for number, prompt in enumerate(prompts, start=1))
    )
    created = server.create(
        source,
        metadata={"team": "harbour"},
        output_expires_after={"anchor": "created_at", "seconds": OUTPUT_EXPIRY},
    )
    return _ended(server, server.follow(created), source)


@pytest.fixture(scope="package")
def cancelled(server: Server, own: Own) -> Ended:
    """A batch cancelled while some requests were answered, some running and some queued."""
    source = jsonl(*ANSWERED, *held("cancelled", 150), *NEVER_REACHED)
    created = server.create(source)
    answered = len(ANSWERED)
    until(lambda: server.batch(created["id"])["request_counts"]["completed"] == answered, "answers")
    states = [server.batch(created["id"]), server.cancel(created["id"])]
    ended = _ended(server, server.follow(created, states), source)
    own.engine.release("cancelled")
    return ended


@pytest.fixture(scope="package")
def expired(server: Server, own: Own) -> Ended:
    """A batch that exceeds its window of a minute; created at the start of the session."""
    return _ended(server, server.follow(own.expiring), EXPIRING)


def _ended(server: Server, history: list[dict[str, Any]], source: bytes) -> Ended:
    output, errors = (
        server.content(history[-1][f"{role}_file_id"]) for role in ("output", "error")
    )
    return Ended(history, source, output, errors)
