"""The CLI in a terminal and in scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle
from tests.e2e.command import lowtide
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.test_main_job import QUESTIONS
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.stacks import LocalStack


def run_json(stack: LocalStack, *arguments: str | Path, fails: bool = False) -> Any:
    """Run a command against a stack and return its JSON output."""
    done = lowtide(*arguments, "--data-dir", stack.data_dir, "--json", fails=fails)
    return json.loads(done.stdout)


def test_status_lists_urls_key_and_processes(stack: LocalStack) -> None:
    status = run_json(stack, "status")
    assert status["base_url"] == stack.base_url
    assert status["api_key"] == stack.api_key
    assert status["portal_url"].endswith(str(stack.portal_port))
    names = {process["name"] for process in status["processes"]}
    functions = {"upload", "create-batch", "cancel-batch", "read", "split", "finalize", "schedule"}
    assert names >= functions | {"postgres", "router", "broker", "portal"}
    assert stack.api_key in lowtide("status", "--data-dir", stack.data_dir).stdout


def test_submit_waits_and_saves_output(stack: LocalStack, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    batch = run_json(stack, "submit", QUESTIONS, "--out", output, "--user", "ada")
    oracle.check(batch, QUESTIONS.read_bytes(), output.read_bytes(), answers=simulated_answer)
    assert batch["files"] == {"output": str(output)}
    summary = batch["summary"]
    assert summary["requests"] == summary["outcomes"]["completed"] == 200
    assert summary["interruptions"] == batch["x_lowtide"]["interruptions"]
    assert batch["x_lowtide"]["user"] == "ada"
    assert batch["id"] in {
        one["id"] for one in run_json(stack, "batches", "list", "--limit", "5")["data"]
    }


def test_submit_without_terminal_prints_plain_text(stack: LocalStack, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(chat_file(20))
    output = lowtide("submit", path, "--watch", "--data-dir", stack.data_dir).stdout
    assert "completed: 20/20" in output
    assert "\x1b" not in output
    first, *_ = output.splitlines()
    assert stack.batch(first)["status"] == "completed"
    watched = lowtide("watch", first, "--data-dir", stack.data_dir).stdout
    assert watched.startswith("completed: 20/20")


def test_files_of_batch_are_downloaded_and_failed_requests_run_again(
    stack: LocalStack, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    # The simulated engine refuses such a number of choices.
    failed = (
        chat_file(1).replace(b'"line-1"', b'"bad"').replace(b'"tide-1"', b'"tide-1", "n": 999999')
    )
    path.write_bytes(chat_file(20) + failed)
    batch = run_json(stack, "submit", path, "--watch")["id"]
    assert run_json(stack, "show", batch)["request_counts"]["failed"] == 1
    for what, lines in (("output", 20), ("errors", 1), ("input", 21), ("failed-inputs", 1)):
        out = tmp_path / what
        report = run_json(stack, "download", batch, "--what", what, "--out", out)
        assert (report["lines"], out.read_bytes().count(b"\n")) == (lines, lines)
        again = tmp_path / f"{what} again"
        run_json(stack, "download", batch, "--what", what, "--out", again, "--tenant", "default")
        assert again.read_bytes() == out.read_bytes()
    assert (tmp_path / "input").read_bytes() == path.read_bytes()
    assert (tmp_path / "failed-inputs").read_bytes() == failed
    rerun = run_json(stack, "retry-failed", batch)
    assert (rerun["requests"], rerun["source_batch_id"]) == (1, batch)
    again = run_json(stack, "watch", rerun["batch_id"])
    assert (again["status"], again["metadata"]) == ("completed", {"rerun_of": batch})
    refused = lowtide("download", again["id"], "--data-dir", stack.data_dir, fails=True)
    assert "has no output file" in refused.stderr


def test_operator_lists_and_cancels_batches_of_all_tenants(
    stack: LocalStack, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(chat_file(100))
    for pool in ("spot", "dedicated"):
        lowtide("pools", "pause", pool, "--data-dir", stack.data_dir)
    try:
        batch = run_json(stack, "submit", path)["id"]
        (listed, *_) = run_json(stack, "batches", "list", "--all-tenants", "--limit", "1")["data"]
        assert (listed["id"], listed["tenant"]) == (batch, "default")
        assert run_json(stack, "cancel", batch, "--tenant", "default")["status"] == "cancelling"
        assert stack.follow(batch)[-1]["status"] == "cancelled"
    finally:
        for pool in ("spot", "dedicated"):
            lowtide("pools", "resume", pool, "--data-dir", stack.data_dir)


def test_cancel_ends_running_batch(stack: LocalStack, tmp_path: Path) -> None:
    source = chat_file(50_000)
    path = tmp_path / "in.jsonl"
    path.write_bytes(source)
    batch = run_json(stack, "submit", path, "--window", "2h", "--priority", "-3")["id"]
    until(lambda: stack.batch(batch)["status"] == "in_progress", "the batch is split")
    assert run_json(stack, "cancel", batch)["status"] in {"cancelling", "cancelled"}
    final = stack.follow(batch)[-1]
    assert final["x_lowtide"]["priority"] == -3
    output, errors = (stack.content(final[f"{role}_file_id"]) for role in ("output", "error"))
    oracle.check(final, source, output, errors, answers=simulated_answer, status="cancelled")
    assert {one.error["code"] for one in oracle.outcomes(errors) if one.error} == {
        "batch_cancelled"
    }
    assert run_json(stack, "cancel", batch)["status"] == "cancelled"


@pytest.mark.parametrize("valid", [True, False], ids=["good", "bad"])
def test_validate_needs_no_server(tmp_path: Path, *, valid: bool) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(chat_file(3) + (b"" if valid else b"[1]\n"))
    report = json.loads(lowtide("validate", path, "--json", fails=not valid).stdout)
    assert (report["valid"], report["requests"]) == (valid, 3 if valid else 4)
    assert [problem["line"] for problem in report["problems"]] == ([] if valid else [4])


def test_submit_exits_with_1_when_batch_fails(stack: LocalStack, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(chat_file(2) + b"[1]\n")
    batch = run_json(stack, "submit", path, "--watch", fails=True)
    assert (batch["status"], batch["errors"]["data"][0]["line"]) == ("failed", 3)


@pytest.mark.parametrize("command", [("status",), ("batches", "list"), ("cancel", "batch_0")])
def test_command_without_stack_suggests_lowtide_up(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = lowtide(*command, "--data-dir", tmp_path, fails=True)
    assert "lowtide up" in done.stderr
    assert "Traceback" not in done.stderr


def test_error_names_port_in_use(stack: LocalStack, tmp_path: Path) -> None:
    done = lowtide("up", "--port", str(stack.port), "--data-dir", tmp_path, fails=True)
    assert str(stack.port) in done.stderr
    assert "Traceback" not in done.stderr


def test_error_names_unknown_setting(tmp_path: Path) -> None:
    done = lowtide("up", "--data-dir", tmp_path, settings={"LOWTIDE_ENGIN": "noop"}, fails=True)
    assert "LOWTIDE_ENGIN" in done.stderr
