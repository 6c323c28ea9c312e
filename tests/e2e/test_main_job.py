"""The main job with the official client: an input file in, an output file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import oracle
from tests.e2e.questions import chat_file, simulated_answer

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.e2e.stacks import LocalStack

ROOT = Path(__file__).parents[2]
QUESTIONS = ROOT / "examples" / "questions.jsonl"
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "gsm8k-1319.jsonl"


def test_example_file_completes_in_input_order(
    stack: LocalStack, client: OpenAI, tmp_path: Path
) -> None:
    uploaded = client.files.create(file=QUESTIONS, purpose="batch")
    assert (uploaded.status, uploaded.bytes) == ("processed", QUESTIONS.stat().st_size)
    batch = client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"team": "harbour"},
    )
    assert batch.status in {"validating", "in_progress"}
    assert batch.output_file_id is None

    states = stack.follow(batch.id)
    assert {"in_progress", "completed"} <= {state["status"] for state in states}

    final = client.batches.retrieve(batch.id)
    assert final.output_file_id is not None
    output = tmp_path / "output.jsonl"
    client.files.content(final.output_file_id).write_to_file(output)
    expected = [line.custom_id for line in oracle.input_lines(QUESTIONS.read_bytes())]
    assert [line.custom_id for line in oracle.outcomes(output.read_bytes())] == expected
    oracle.check(
        final.to_dict(), QUESTIONS.read_bytes(), output.read_bytes(), answers=simulated_answer
    )
    assert final.metadata == {"team": "harbour"}

    output_file = client.files.retrieve(final.output_file_id)
    assert (output_file.purpose, output_file.bytes) == ("batch_output", output.stat().st_size)
    assert batch.id in {one.id for one in client.batches.list(limit=100)}


@pytest.mark.skipif(not GSM8K.exists(), reason="the GSM8K batch file is missing")
def test_gsm8k_completes_despite_interruptions(stack: LocalStack) -> None:
    source = GSM8K.read_bytes()
    batch = stack.submit(stack.upload(source))
    final = stack.finish(batch, source, answers=simulated_answer)
    assert final["request_counts"] == {"total": 1319, "completed": 1319, "failed": 0}

    # Every interrupted request ran again and succeeded.
    (requests, interruptions, all_succeeded) = stack.query(
        """SELECT count(*), sum(interruptions), bool_and(succeeded) FROM results
           WHERE batch_id = :batch AND interruptions > 0""",
        batch=batch.removeprefix("batch_"),
    )[0]
    assert interruptions == final["x_lowtide"]["interruptions"]
    assert 1319 * 0.05 < requests <= interruptions < 1319 * 0.2
    assert all_succeeded


def test_two_batches_of_one_file_complete_concurrently(stack: LocalStack) -> None:
    source = chat_file(300)
    file = stack.upload(source)
    batches = [stack.submit(file) for _ in range(2)]
    for batch in batches:
        stack.finish(batch, source, answers=simulated_answer)


def test_file_with_bom_crlf_and_blank_lines_completes(stack: LocalStack) -> None:
    lines = chat_file(5).splitlines()
    source = b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines)
    stack.finish(stack.submit(stack.upload(source)), source, answers=simulated_answer)
