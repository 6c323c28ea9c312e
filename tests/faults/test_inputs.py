"""An input object that breaks affects exactly the requests of its own batch.

Two batches wait in a paused pool until the object is broken, so that one claim has requests of both.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI

from tests import oracle
from tests.e2e.command import lowtide
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.conftest import StackFactory
    from tests.e2e.stacks import LocalStack

REQUESTS = 60
SOURCE = chat_file(REQUESTS)
SETTINGS = {
    "LOWTIDE_SIMULATED_LATENCY": "0.01",
    "LOWTIDE_WORKER_POLL_CAP": "0.5",
    "LOWTIDE_SPOT_REPLICAS": "1",
}
FINAL = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def shared(make_stack: StackFactory) -> LocalStack:
    """A stack with one worker."""
    return make_stack(SETTINGS)


@pytest.fixture(scope="module")
def clients(shared: LocalStack) -> Iterator[list[OpenAI]]:
    """The clients of two tenants."""
    data = ("--data-dir", str(shared.data_dir))
    made = []
    for name in ("tenant-a", "tenant-b"):
        lowtide("tenants", "create", name, *data)
        key = json.loads(lowtide("keys", "create", name, "--json", *data).stdout)["key"]
        made.append(OpenAI(base_url=f"{shared.base_url}/v1", api_key=key, max_retries=12))
    yield made
    for client in made:
        client.close()


@dataclass
class BatchPair:
    """Split batches of two tenants; `path` is the input object of the first."""

    stack: LocalStack
    clients: list[OpenAI]
    batches: list[str]
    path: Path

    def resume(self) -> None:
        """Resume the spot pool."""
        lowtide("pools", "resume", "spot", "--data-dir", str(self.stack.data_dir))

    def batch(self, tenant: int) -> dict[str, Any]:
        """Return a tenant's batch."""
        return self.clients[tenant].batches.retrieve(self.batches[tenant]).to_dict()

    def finish(self, tenant: int, within: float = 90.0) -> tuple[bytes, bytes]:
        """Wait for a batch to complete and check it; return its output and errors."""
        until(
            lambda: self.batch(tenant)["status"] in FINAL,
            "the batch ends",
            within=within,
            every=0.1,
        )
        final, client = self.batch(tenant), self.clients[tenant]
        files = [final["output_file_id"], final["error_file_id"]]
        output, errors = (client.files.content(file).read() if file else b"" for file in files)
        oracle.check(final, SOURCE, output, errors, answers=simulated_answer)
        return output, errors

    def codes(self, tenant: int) -> dict[str, int]:
        """Return the number of failed requests of a batch by error code."""
        rows = self.stack.query(
            """SELECT error_code, count(*) AS requests, max(attempts) AS attempts FROM results
               WHERE batch_id = :batch AND NOT succeeded GROUP BY error_code""",
            batch=self.batches[tenant].removeprefix("batch_"),
        )
        assert all(row.attempts == 0 for row in rows)
        return {row.error_code: row.requests for row in rows}


def _is_split(client: OpenAI, batch: str) -> bool:
    return client.batches.retrieve(batch).status == "in_progress"


@pytest.fixture
def pair(shared: LocalStack, clients: list[OpenAI]) -> Iterator[BatchPair]:
    """The split batches of two tenants in a paused pool."""
    lowtide("pools", "pause", "spot", "--data-dir", str(shared.data_dir))
    batches = []
    for client in clients:
        file = client.files.create(file=("input.jsonl", SOURCE), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batches.append(batch.id)
    for client, id_ in zip(clients, batches, strict=True):
        until(partial(_is_split, client, id_), "the batch is split", within=60)
    (row,) = shared.query(
        "SELECT input_key FROM batches WHERE id = :batch", batch=batches[0].removeprefix("batch_")
    )
    made = BatchPair(shared, clients, batches, shared.data_dir / "objects" / row.input_key)
    yield made
    made.resume()


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


BROKEN = [
    pytest.param(lambda path: path.unlink(), "input_missing", REQUESTS, id="deleted"),
    pytest.param(
        lambda path: path.write_bytes(b"x" * path.stat().st_size), "input_corrupt", REQUESTS,
        id="garbage of the same length",
    ),
    pytest.param(
        lambda path: path.write_bytes(path.read_bytes().replace(b"high", b"deep")),
        "input_corrupt", REQUESTS, id="other requests of the same length",
    ),
    pytest.param(_halve, "input_corrupt", REQUESTS // 2, id="cut in half"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "code", "requests"), BROKEN)
def test_broken_object_fails_only_its_own_requests(
    pair: BatchPair, damage: Callable[[Path], None], code: str, requests: int
) -> None:
    damage(pair.path)
    pair.resume()
    _, errors = pair.finish(1)
    assert errors == b""
    pair.finish(0)
    ((error_code, failed),) = pair.codes(0).items()
    assert error_code == code
    assert abs(failed - requests) <= 2
    for outcome in oracle.outcomes(pair.finish(0)[1]):
        assert outcome.error is not None
        assert outcome.error["code"] == code
        assert "input file" in outcome.error["message"]


def _into_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)  # opening it fails like any error of the store


def _into_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # opening it blocks until a writer opens it


@pytest.mark.parametrize("change", [_into_loop, _into_pipe], ids=["cannot be read", "hangs"])
def test_unreadable_object_delays_only_its_own_requests(
    pair: BatchPair, change: Callable[[Path], None]
) -> None:
    content = pair.path.read_bytes()
    change(pair.path)
    pair.resume()
    pair.finish(1, within=30)
    assert pair.batch(0)["request_counts"] == {"total": REQUESTS, "completed": 0, "failed": 0}
    pair.path.rename(pair.path.with_name("changed"))
    pair.path.write_bytes(content)
    _, errors = pair.finish(0)
    assert errors == b""
    rows = pair.stack.query(
        """SELECT max(attempts) AS attempts, max(interruptions) AS interruptions FROM results
           WHERE batch_id = :batch""",
        batch=pair.batches[0].removeprefix("batch_"),
    )
    assert tuple(rows[0]) == (1, 0)
    log = pair.stack.log()
    # It is retried after 2, 4, 8, … seconds, and not in a hot loop.
    assert 1 <= log.count("input.unreadable") < 20
