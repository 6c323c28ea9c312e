"""Three cells behind a front: a killed one costs the others nothing, and continues when it is back."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import httpx
import psutil
import pytest

from lowtide.cells.front import MISSING
from tests.e2e.command import lowtide
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.stacks import LocalStack, running
from tests.e2e.test_restarts import is_alive
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    Kept = dict[str, bytes]
    """The input of each batch by its id."""

SETTINGS: Final = {
    # A batch runs for several seconds, also while all cells share two cores.
    "LOWTIDE_SIMULATED_LATENCY": "2",
    "LOWTIDE_SPOT_REPLICAS": "1",
    "LOWTIDE_DEDICATED_REPLICAS": "0",
    "LOWTIDE_LEASE_DURATION": "3",
    "LOWTIDE_WORKER_POLL_CAP": "1",
}
BATCHES: Final = 30
REQUESTS: Final = 60
PATIENCE: Final = 300.0
SLOWEST: Final = 5.0


@pytest.fixture(scope="module")
def cells() -> Iterator[LocalStack]:
    """A front over three cells."""
    with running(SETTINGS, cells=3) as stack:
        yield stack


@pytest.fixture
def http(cells: LocalStack) -> Iterator[httpx.Client]:
    """The front, without retries."""
    headers = {"Authorization": f"Bearer {cells.api_key}"}
    with httpx.Client(base_url=cells.base_url, headers=headers, timeout=30) as client:
        yield client


class Reader:
    """Reads batches of cells over and over, each in its turn, until it is closed."""

    def __init__(self, client: httpx.Client, batches: list[str]) -> None:
        self.seconds: list[float] = []
        self.refusals: list[str] = []
        self._client = client
        self._batches = batches
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            batch = self._batches[len(self.seconds) % len(self._batches)]
            began = time.monotonic()
            answer = self._client.get(f"/v1/batches/{batch}")
            self.seconds.append(time.monotonic() - began)
            if answer.status_code != 200:
                self.refusals.append(f"{batch}: {answer.status_code} {answer.text}")


def test_killed_cell_is_away_alone_and_returns(cells: LocalStack, http: httpx.Client) -> None:
    # Where new work goes first is a matter of prices.
    kept: Kept = {}
    for cell in cells.installations:
        kept |= _submitted(http, BATCHES // 3, at=cell.base_url)
    victim = cells.installations[1]
    lost = [batch for batch in kept if cells.owner(batch) is victim]
    others = [batch for batch in kept if batch not in lost]
    until(
        lambda: any(http.get(f"/v1/batches/{batch}/results").content for batch in lost),
        "the cell has results",
        within=PATIENCE,
    )
    assert any(http.get(f"/v1/batches/{batch}").json()["status"] == "in_progress" for batch in lost)

    supervisor = victim.supervisor
    family = [supervisor, *supervisor.children(recursive=True)]
    with Reader(http, others) as reader:
        lowtide("cells", "kill", "cell-2", "--data-dir", cells.data_dir)
        killed = time.monotonic()
        assert not any(map(is_alive, family))
        new = _submitted_in_time(http, killed + SLOWEST)
        kept |= new
        _check_absence(cells, http, lost)
        kept |= _submitted(http, 6)
        assert [batch for batch in kept if cells.owner(batch) is victim] == lost
        lowtide("cells", "start", "cell-2", "--data-dir", cells.data_dir, timeout=PATIENCE)
    assert reader.refusals == []
    assert len(reader.seconds) > BATCHES
    assert max(reader.seconds) < SLOWEST

    victim.forget_connections()
    for batch, source in kept.items():
        cells.finish(batch, source, answers=simulated_answer, within=PATIENCE)
    again = _submitted(http, 1, at=victim.base_url)
    assert http.get("/v1/batches", params={"limit": 1}).json()["data"][0]["id"] in again


def _check_absence(cells: LocalStack, http: httpx.Client, lost: list[str]) -> None:
    """Assert that what the cell holds is away, not gone, and that lists and `status` say so."""
    answer = http.get(f"/v1/batches/{lost[0]}")
    assert answer.status_code == 503
    assert "cell-2" in answer.json()["error"]["message"]
    page = http.get("/v1/batches", params={"limit": 100})
    assert page.headers[MISSING] == "cell-2"
    listed = [each["id"] for each in page.json()["data"]]
    assert listed
    assert not set(listed) & set(lost)
    status = {cell["process"]["name"]: cell["process"] for cell in cells.status()["cells"]}
    assert {name: each["state"] for name, each in status.items()} == {
        "cell-1": "ready",
        "cell-2": "away",
        "cell-3": "ready",
    }
    assert status["cell-2"]["pid"] is None


def _submitted(http: httpx.Client, count: int, *, at: str = "") -> Kept:
    """Return new batches with their inputs, created at the front or a cell."""
    source = chat_file(REQUESTS)
    return {_submit(http, source, at): source for _ in range(count)}


def _submit(http: httpx.Client, source: bytes, at: str = "") -> str:
    file = http.post(
        f"{at}/v1/files", files={"file": ("input.jsonl", source)}, data={"purpose": "batch"}
    )
    file.raise_for_status()
    batch = http.post(f"{at}/v1/batches", json={"input_file_id": file.json()["id"]})
    batch.raise_for_status()
    return str(batch.json()["id"])


def _submitted_in_time(http: httpx.Client, deadline: float) -> Kept:
    """Return a batch that was accepted by a time, however often the front refused it."""
    source = chat_file(REQUESTS)
    kept: Kept = {}
    while not kept:
        try:
            kept = {_submit(http, source): source}
        except httpx.HTTPStatusError as refused:
            if refused.response.status_code != 503:
                raise
        assert time.monotonic() < deadline, "no new batch in time"
    return kept


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/v1/files", {"limit": 7, "order": "desc"}),
        ("/v1/files", {"limit": 7, "order": "asc"}),
        ("/v1/batches", {"limit": 7}),
    ],
    ids=["files-desc", "files-asc", "batches"],
)
def test_lists_are_exact_while_all_cells_insert(
    cells: LocalStack, http: httpx.Client, path: str, parameters: dict[str, Any]
) -> None:
    """Whatever was there before a walk began is in it once, and in order."""
    source = chat_file(1)
    headers = {"Authorization": f"Bearer {cells.api_key}"}
    clients = [
        httpx.Client(base_url=cell.base_url, headers=headers, timeout=30)
        for cell in cells.installations
    ]
    before = [_insert(client, path, source) for _ in range(15) for client in clients]
    made: list[list[str]] = [[] for _ in clients]
    walked = threading.Event()

    def insert(client: httpx.Client, names: list[str]) -> None:
        while not walked.is_set():
            names.append(_insert(client, path, source))

    with ThreadPoolExecutor(len(clients)) as threads:
        inserting = [threads.submit(insert, *each) for each in zip(clients, made, strict=True)]
        try:
            until(lambda: all(made), "all cells insert")
            walk = _walk(http, path, parameters)
        finally:
            walked.set()
        for each in inserting:
            each.result()
    for client in clients:
        client.close()
    newest_first = parameters.get("order", "desc") == "desc"
    assert len(walk) == len(set(walk)), "an object was listed twice"
    assert walk == sorted(walk, reverse=newest_first)
    seen = [name for name in walk if name in set(before)]
    assert seen == (before[::-1] if newest_first else before)


def _insert(client: httpx.Client, path: str, source: bytes) -> str:
    if path == "/v1/batches":
        return _submit(client, source)
    file = client.post("/v1/files", files={"file": source}, data={"purpose": "batch"})
    file.raise_for_status()
    return str(file.json()["id"])


def _walk(http: httpx.Client, path: str, parameters: dict[str, Any]) -> list[str]:
    names: list[str] = []
    after: dict[str, str] = {}
    while True:
        answer = http.get(path, params=parameters | after)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        names += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            return names
        after = {"after": names[-1]}


def test_operator_command_asks_for_a_cell(cells: LocalStack) -> None:
    refused = lowtide("tenants", "list", "--data-dir", cells.data_dir, fails=True)
    assert f"--data-dir {cells.installations[0].data_dir}" in refused.stderr
    lowtide("tenants", "list", "--data-dir", cells.installations[0].data_dir)


def test_unknown_cell_is_refused(cells: LocalStack) -> None:
    refused = lowtide("cells", "kill", "cell-9", "--data-dir", cells.data_dir, fails=True)
    assert "Its cells are cell-1, cell-2, cell-3." in refused.stderr


def test_down_ends_all_processes() -> None:
    with running(SETTINGS, cells=2) as stack:
        supervisor = stack.supervisor
        family = [supervisor, *supervisor.children(recursive=True)]
        assert len(family) > 20
        stack.down()
        assert not any(map(is_alive, family))


def test_killed_supervisor_leaves_nothing_after_down() -> None:
    with running(SETTINGS, cells=2) as stack:
        supervisor = stack.supervisor
        family = [supervisor, *supervisor.children(recursive=True)]
        supervisor.kill()
        psutil.wait_procs([supervisor], timeout=10)
        stack.down()
        until(lambda: not any(map(is_alive, family)), "all processes end")
