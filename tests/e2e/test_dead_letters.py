"""Dead letters in the CLI, from the engine's failure to their requeue."""

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
    """An engine that fails marked requests until it recovers."""
    with commanded_engine() as made:
        yield made


@pytest.fixture(scope="module")
def dead_letter_stack(engine: Engine) -> Iterator[LocalStack]:
    """A stack that attempts each request once."""
    with running({**SETTINGS, "LOWTIDE_ENGINE_URL": engine.url}) as made:
        yield made


def _any_answer(line: InputLine, body: Any) -> None:
    assert body["model"] == line.body["model"]


def _run_json(stack: LocalStack, *arguments: str | Path, fails: bool = False) -> Any:
    process = lowtide(
        "dead-letters", *arguments, "--data-dir", stack.data_dir, "--json", fails=fails
    )
    return None if fails else json.loads(process.stdout)


def _source(name: str, dead: int) -> bytes:
    healthy = [request(f"fine-{number}", "How high is the tide? 🌊") for number in range(5)]
    return jsonl(*healthy[:3], *broken(name, dead), *healthy[3:])


def _failing_lines(source: bytes) -> bytes:
    lines = source.splitlines(keepends=True)
    return b"".join(line for line in lines if b"broken for" in line)


def test_requeued_dead_letters_complete_after_engine_recovers(
    dead_letter_stack: LocalStack, engine: Engine, tmp_path: Path
) -> None:
    stack = dead_letter_stack
    source = _source("whole", 4)
    batch = stack.submit(stack.upload(source))
    final = stack.finish(batch, source, answers=_any_answer)
    assert final["request_counts"] == {"total": 9, "completed": 5, "failed": 4}
    errors = stack.content(final["error_file_id"])

    page = _run_json(stack, "list", "--batch", batch, "--state", "open")
    assert [(one["custom_id"], one["error_code"], one["attempts"]) for one in page["data"]] == [
        (f"broken-{number}", "http_500", 1) for number in (3, 2, 1, 0)
    ]
    shown = _run_json(stack, "show", page["first_id"])
    assert shown["input"] == json.loads(_failing_lines(source).splitlines()[3])
    assert shown["response"]["body"]["error"]["message"] == "The engine is broken."
    for which, expected in (("input", _failing_lines(source)), ("output", errors)):
        out = tmp_path / f"{which}.jsonl"
        report = _run_json(stack, "download", "--batch", batch, "--which", which, "--out", out)
        assert (out.read_bytes(), report["lines"]) == (expected, 4)

    engine.mend("whole")
    chosen = ("requeue", "--batch", batch, "--window", "2h")
    assert _run_json(stack, *chosen, "--dry-run")["changed"] == 4
    done = _run_json(stack, *chosen, "--yes")
    (made,) = done["batches"]
    assert (done["changed"], made["source_batch_id"], made["letters"]) == (4, batch, 4)
    again = stack.finish(made["batch_id"], _failing_lines(source), answers=_any_answer)
    assert (again["status"], again["request_counts"]["completed"]) == ("completed", 4)
    assert again["metadata"] == {"dead_letters_of": batch}
    assert again["completion_window"] == "2h"
    # The first batch is unchanged.
    assert stack.batch(batch) == final
    assert stack.content(final["error_file_id"]) == errors
    requeued = _run_json(stack, "list", "--batch", batch)["data"]
    assert {(one["state"], one["requeued_as"]) for one in requeued} == {
        ("requeued", made["batch_id"])
    }
    assert _run_json(stack, *chosen, "--yes")["changed"] == 0
    assert _run_json(stack, "requeue", *(one["id"] for one in requeued), "--yes")["batches"] == [
        made
    ]


def test_requeued_dead_letters_fail_again_and_can_be_discarded(
    dead_letter_stack: LocalStack,
) -> None:
    stack = dead_letter_stack
    source = _source("never", 3)
    batch = stack.submit(stack.upload(source))
    stack.finish(batch, source, answers=_any_answer)
    (made,) = _run_json(stack, "requeue", "--batch", batch, "--yes")["batches"]
    final = stack.follow(made["batch_id"])[-1]
    assert final["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    ids = [one["id"] for one in _run_json(stack, "list", "--batch", made["batch_id"])["data"]]
    assert len(ids) == 3
    counted = _run_json(stack, "summary", "--batch", made["batch_id"])
    assert (counted["total"], sum(group["letters"] for group in counted["groups"])) == (3, 3)
    # Without --yes a script gets a description of the change, and nothing happens.
    refused = lowtide(
        "dead-letters", "discard", *ids, "--data-dir", stack.data_dir, "--json", fails=True
    )
    assert "3 dead letters" in refused.stderr
    assert _run_json(stack, "discard", ids[0], "--yes")["changed"] == 1
    assert _run_json(stack, "discard", "--batch", made["batch_id"], "--yes")["changed"] == 2
    states = {one["state"] for one in _run_json(stack, "list", "--batch", made["batch_id"])["data"]}
    assert states == {"discarded"}
    plain = lowtide("dead-letters", "list", "--state", "discarded", "--data-dir", stack.data_dir)
    assert all(id_ in plain.stdout for id_ in ids)
    nothing = lowtide(
        "dead-letters", "summary", "--batch", made["batch_id"], "--data-dir", stack.data_dir
    )
    assert "0 in total" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("requeue",), "--all", id="no selection"),
        pytest.param(("discard", "batch_req_x", "--all"), "--all", id="two selections"),
        pytest.param(("show", "batch_req_x"), "check the id", id="unknown id"),
        pytest.param(("requeue", "x", "--yes"), "ids", id="malformed id"),
        pytest.param(("requeue", "--all", "--window", "9d"), "completion_window", id="bad window"),
        pytest.param(("download", "--batch", "x", "--out", "never.jsonl"), "batch", id="bad batch"),
    ],
)
def test_bad_arguments_are_refused(
    dead_letter_stack: LocalStack, arguments: tuple[str, ...], message: str
) -> None:
    process = lowtide(
        "dead-letters", *arguments, "--data-dir", dead_letter_stack.data_dir, fails=True
    )
    assert message in process.stderr, process.stderr


def test_requeue_fails_when_input_file_is_deleted(dead_letter_stack: LocalStack) -> None:
    stack = dead_letter_stack
    source = _source("gone", 2)
    batch = stack.submit(stack.upload(source))
    final = stack.finish(batch, source, answers=_any_answer)
    stack.client.files.delete(final["input_file_id"])
    done = lowtide(
        "dead-letters", "requeue", "--batch", batch, "--data-dir", stack.data_dir, fails=True
    )
    assert "deleted or has expired" in done.stderr
    assert _run_json(stack, "discard", "--batch", batch, "--yes")["changed"] == 2


def test_kill_between_file_and_batch_keeps_dead_letters_open(
    dead_letter_stack: LocalStack, engine: Engine
) -> None:
    stack = dead_letter_stack
    source = _source("killed", 3)
    batch = stack.submit(stack.upload(source))
    stack.finish(batch, source, answers=_any_answer)
    engine.mend("killed")
    copies = "SELECT object_key FROM orphan_objects WHERE object_key LIKE 'files/%'"
    earlier = {row.object_key for row in stack.query(copies)}
    call = partial(
        httpx.post,
        f"{stack.base_url}/v1/dead_letters/requeue",
        json={"filter": {"batch_id": batch}},
        headers={"Authorization": f"Bearer {stack.api_key}"},
        timeout=60,
    )
    with ThreadPoolExecutor(1) as pool:
        with stack.locked("dead_letters"):
            response = pool.submit(call)
            until(
                lambda: stack.waits_for_lock("create_batch"), "the dead letters are being updated"
            )
            stack.kill("create-batch")
        with suppress(httpx.HTTPError):
            assert response.result().status_code == 503
    until(lambda: not stack.waits_for_lock("create_batch"), "the killed call's statement ends")
    assert len(_run_json(stack, "list", "--batch", batch, "--state", "open")["data"]) == 3
    orphans = {row.object_key for row in stack.query(copies)} - earlier
    assert len(orphans) == 1
    assert orphans <= stack.objects()

    (made,) = _run_json(stack, "requeue", "--batch", batch, "--yes")["batches"]
    stack.finish(made["batch_id"], _failing_lines(source), answers=_any_answer)
    of_batch = "SELECT id FROM batches WHERE metadata->>'dead_letters_of' = :batch"
    assert len(stack.query(of_batch, batch=batch)) == 1
    # The scheduler removes the orphan after the longest possible upload.
    stack.query("UPDATE orphan_objects SET due_at = now() RETURNING 1")
    until(lambda: not orphans & stack.objects(), "the orphan is removed")
