"""Large answers are accepted up to a limit, in bounded memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle
from tests.e2e.waiting import until
from tests.faults.large import answering, vectors
from tests.faults.memory import memory_limit, peak_memory, worker_bound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StackFactory
    from tests.e2e.stacks import LocalStack

MB = 1_000_000
FINAL = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """The URL of an engine with large answers."""
    with answering() as url:
        yield url


@pytest.fixture(scope="module")
def shared(make_stack: StackFactory, engine: str) -> LocalStack:
    """A stack whose engine has large answers."""
    return make_stack(
        {
            "LOWTIDE_ENGINE": "openai",
            "LOWTIDE_ENGINE_URL": engine,
            "LOWTIDE_WORKER_POLL_CAP": "0.5",
            "LOWTIDE_SPOT_REPLICAS": "1",
        }
    )


def _source(bodies: list[dict[str, Any]], url: str = "/v1/chat/completions") -> bytes:
    return b"".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": url,
                "body": {"model": "m", "input": "x", "messages": [], **body},
            }
        ).encode()
        + b"\n"
        for number, body in enumerate(bodies)
    )


def _peak_memory(stack: LocalStack, batch: str, within: float) -> int:
    """Wait for a batch to end; return the peak memory of its workers."""
    peaks = [0]

    def sample() -> bool:
        alive = [worker.name for worker in stack.workers() if worker.pid is not None]
        peaks.extend(peak_memory(stack, name) for name in alive)
        return stack.batch(batch)["status"] in FINAL

    until(sample, "the batch ends", within=within, every=0.1)
    return max(peaks)


@pytest.mark.parametrize("chunked", [False, True], ids=["with length", "chunked"])
def test_large_answers_stay_within_worker_memory_limit(shared: LocalStack, chunked: bool) -> None:
    source = _source([{"x_bytes": 12 * MB, "x_chunked": chunked}] * 60)
    batch = shared.submit(shared.upload(source))
    peak = _peak_memory(shared, batch, within=300)
    counts = shared.batch(batch)["request_counts"]
    assert counts == {"total": 60, "completed": 60, "failed": 0}
    sizes = shared.query(
        "SELECT octet_length(body) AS size, attempts FROM results WHERE batch_id = :batch",
        batch=batch.removeprefix("batch_"),
    )
    assert {tuple(row) for row in sizes} == {(12 * MB, 1)}
    bound = worker_bound()  # the answers together are larger
    print(f"a worker had up to {peak / 2**20:.0f} MiB of {bound / 2**20:.0f}")
    assert 0 < peak < bound < memory_limit("infer-spot")


def test_large_embeddings_answer_reaches_output_file(shared: LocalStack) -> None:
    source = _source([{"x_vectors": 1000}], "/v1/embeddings")
    batch = shared.submit(shared.upload(source), "/v1/embeddings")
    final = shared.follow(batch)[-1]
    output = shared.content(final["output_file_id"])
    expected = vectors(1000)
    assert len(expected) > 20 * MB
    assert expected in output
    (outcome,) = oracle.outcomes(output)
    assert len(outcome.body["data"]) == 1000


@pytest.mark.parametrize("chunked", [False, True], ids=["with length", "chunked"])
def test_too_large_answer_fails_only_its_request(shared: LocalStack, chunked: bool) -> None:
    bodies: list[dict[str, Any]] = [{"x_bytes": 100} for _ in range(5)]
    bodies[2] = {"x_bytes": 70 * MB, "x_chunked": chunked}
    batch = shared.submit(shared.upload(_source(bodies)))
    final = shared.follow(batch)[-1]
    assert final["request_counts"] == {"total": 5, "completed": 4, "failed": 1}
    (outcome,) = oracle.outcomes(shared.content(final["error_file_id"]))
    assert outcome.custom_id == "line-2"
    assert outcome.error is not None
    assert outcome.error["code"] == "response_too_large"
    assert "67108864 bytes" in outcome.error["message"]
    rows = shared.query(
        "SELECT attempts FROM results WHERE batch_id = :batch", batch=batch.removeprefix("batch_")
    )
    assert {row.attempts for row in rows} == {1}
