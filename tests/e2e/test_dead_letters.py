"""Dead letters from the engine's failure to their second run, by the command."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conformance.engine import commanded_engine
from tests.conformance.lines import broken, jsonl, request
from tests.e2e.command import lowtide
from tests.e2e.stacks import running
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.engine import Engine
    from tests.e2e.stacks import LocalStack
    from tests.oracle import InputLine

SETTINGS = {
    "LOWTIDE_ENGINE": "openai",
    "LOWTIDE_MAX_ATTEMPTS": "1",
    "LOWTIDE_WORKER_POLL_CAP": "0.5",
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine that fails until it is mended."""
    with commanded_engine() as made:
        yield made


@pytest.fixture(scope="module")
def letters_stack(engine: Engine) -> Iterator[LocalStack]:
    """A stack that tries each line once."""
    with running({**SETTINGS, "LOWTIDE_ENGINE_URL": engine.url}) as made:
        yield made


def _any_answer(line: InputLine, body: Any) -> None:
    assert body["model"] == line.body["model"]


def _ask(stack: LocalStack, *arguments: str | Path, fails: bool = False) -> Any:
    done = lowtide("dead-letters", *arguments, "--data-dir", stack.data_dir, "--json", fails=fails)
    return None if fails else json.loads(done.stdout)


def _source(name: str, dead: int) -> bytes:
    fine = [request(f"fine-{number}", "How high is the tide? 🌊") for number in range(5)]
    return jsonl(*fine[:3], *broken(name, dead), *fine[3:])


def _dead_lines(source: bytes) -> bytes:
    lines = source.splitlines(keepends=True)
    return b"".join(line for line in lines if b"broken for" in line)


def test_dead_letters_run_again_once_the_engine_is_mended(
    letters_stack: LocalStack, engine: Engine, tmp_path: Path
) -> None:
    stack = letters_stack
    source = _source("whole", 4)
    batch = stack.submit(stack.upload(source))
    ended = stack.finish(batch, source, answers=_any_answer)
    assert ended["request_counts"] == {"total": 9, "completed": 5, "failed": 4}
    errors = stack.content(ended["error_file_id"])

    page = _ask(stack, "list", "--batch", batch, "--state", "open")
    assert [(one["custom_id"], one["error_code"], one["attempts"]) for one in page["data"]] == [
        (f"broken-{number}", "http_500", 1) for number in (3, 2, 1, 0)
    ]
    shown = _ask(stack, "show", page["first_id"])
    assert shown["input"] == json.loads(_dead_lines(source).splitlines()[3])
    assert shown["response"]["body"]["error"]["message"] == "The engine is broken."
    for which, wanted in (("input", _dead_lines(source)), ("output", errors)):
        out = tmp_path / f"{which}.jsonl"
        told = _ask(stack, "download", "--batch", batch, "--which", which, "--out", out)
        assert (out.read_bytes(), told["lines"]) == (wanted, 4)

    engine.mend("whole")
    chosen = ("requeue", "--batch", batch, "--window", "2h")
    assert _ask(stack, *chosen, "--dry-run")["changed"] == 4
    done = _ask(stack, *chosen, "--yes")
    (made,) = done["batches"]
    assert (done["changed"], made["source_batch_id"], made["letters"]) == (4, batch, 4)
    again = stack.finish(made["batch_id"], _dead_lines(source), answers=_any_answer)
    assert (again["status"], again["request_counts"]["completed"]) == ("completed", 4)
    assert again["metadata"] == {"dead_letters_of": batch}
    assert again["completion_window"] == "2h"
    # The first batch is as it was.
    assert stack.batch(batch) == ended
    assert stack.content(ended["error_file_id"]) == errors
    requeued = _ask(stack, "list", "--batch", batch)["data"]
    assert {(one["state"], one["requeued_as"]) for one in requeued} == {
        ("requeued", made["batch_id"])
    }
    assert _ask(stack, *chosen, "--yes")["changed"] == 0
    assert _ask(stack, "requeue", *(one["id"] for one in requeued), "--yes")["batches"] == [made]


def test_letters_of_letters_and_discarding(letters_stack: LocalStack) -> None:
    stack = letters_stack
    source = _source("never", 3)
    batch = stack.submit(stack.upload(source))
    stack.finish(batch, source, answers=_any_answer)
    (made,) = _ask(stack, "requeue", "--batch", batch, "--yes")["batches"]
    ended = stack.follow(made["batch_id"])[-1]
    assert ended["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    ids = [one["id"] for one in _ask(stack, "list", "--batch", made["batch_id"])["data"]]
    assert len(ids) == 3
    # Without --yes a script is told what it would do, and nothing is done.
    refused = lowtide(
        "dead-letters", "discard", *ids, "--data-dir", stack.data_dir, "--json", fails=True
    )
    assert "3 dead letters" in refused.stderr
    assert _ask(stack, "discard", ids[0], "--yes")["changed"] == 1
    assert _ask(stack, "discard", "--batch", made["batch_id"], "--yes")["changed"] == 2
    states = {one["state"] for one in _ask(stack, "list", "--batch", made["batch_id"])["data"]}
    assert states == {"discarded"}
    plain = lowtide("dead-letters", "list", "--state", "discarded", "--data-dir", stack.data_dir)
    assert all(id_ in plain.stdout for id_ in ids)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(("requeue",), "--all", id="nothing named"),
        pytest.param(("discard", "batch_req_x", "--all"), "--all", id="too much named"),
        pytest.param(("show", "batch_req_x"), "check the id", id="unknown"),
        pytest.param(("requeue", "x", "--yes"), "ids", id="no id"),
        pytest.param(("requeue", "--all", "--window", "9d"), "completion_window", id="window"),
        pytest.param(("download", "--batch", "x", "--out", "never.jsonl"), "batch", id="batch"),
    ],
)
def test_what_is_refused(letters_stack: LocalStack, arguments: tuple[str, ...], told: str) -> None:
    done = lowtide("dead-letters", *arguments, "--data-dir", letters_stack.data_dir, fails=True)
    assert told in done.stderr, done.stderr


def test_an_input_that_was_deleted(letters_stack: LocalStack) -> None:
    stack = letters_stack
    source = _source("gone", 2)
    batch = stack.submit(stack.upload(source))
    ended = stack.finish(batch, source, answers=_any_answer)
    stack.client.files.delete(ended["input_file_id"])
    done = lowtide(
        "dead-letters", "requeue", "--batch", batch, "--data-dir", stack.data_dir, fails=True
    )
    assert "deleted or has expired" in done.stderr
    assert _ask(stack, "discard", "--batch", batch, "--yes")["changed"] == 2


def test_killed_between_the_file_and_the_batch(letters_stack: LocalStack, engine: Engine) -> None:
    stack = letters_stack
    source = _source("killed", 3)
    batch = stack.submit(stack.upload(source))
    stack.finish(batch, source, answers=_any_answer)
    engine.mend("killed")
    call = partial(
        httpx.post,
        f"{stack.base_url}/v1/dead_letters/requeue",
        json={"filter": {"batch_id": batch}},
        headers={"Authorization": f"Bearer {stack.api_key}"},
        timeout=60,
    )
    with ThreadPoolExecutor(1) as pool:
        with stack.locked("dead_letters"):
            asked = pool.submit(call)
            until(lambda: stack.waits_for_lock("create_batch"), "letters are being marked")
            stack.kill("create-batch")
        with suppress(httpx.HTTPError):
            assert asked.result().status_code == 503
    until(lambda: not stack.waits_for_lock("create_batch"), "the dead call is over")
    assert len(_ask(stack, "list", "--batch", batch, "--state", "open")["data"]) == 3
    left = {row.object_key for row in stack.query("SELECT object_key FROM stray_objects")}
    assert len(left) == 1
    assert left <= stack.objects()

    (made,) = _ask(stack, "requeue", "--batch", batch, "--yes")["batches"]
    stack.finish(made["batch_id"], _dead_lines(source), answers=_any_answer)
    of_batch = "SELECT id FROM batches WHERE metadata->>'dead_letters_of' = :batch"
    assert len(stack.query(of_batch, batch=batch)) == 1
    # The scheduler removes what was left, once an upload would be over.
    stack.query("UPDATE stray_objects SET due_at = now() RETURNING 1")
    until(lambda: not left & stack.objects(), "the stray file is removed")
