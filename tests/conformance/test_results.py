"""A completed batch: states, counts, usage, and its two files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle
from tests.conformance.conftest import OUTPUT_EXPIRY
from tests.conformance.features import Area, proves
from tests.conformance.lines import CHAT, MODEL, request, requests
from tests.conformance.shapes import check_batch, check_file

if TYPE_CHECKING:
    from tests.conformance.conftest import Ended
    from tests.conformance.server import Official, Own, Server
    from tests.oracle import InputLine

ORDER = ["validating", "in_progress", "finalizing", "completed"]
PATH = ["created_at", "in_progress_at", "finalizing_at", "completed_at"]


def _any_answer(line: InputLine, body: Any) -> None:
    assert body["model"] == line.body["model"]
    assert body["choices"]


@proves(Area.RESULTS, "Upload, create, poll, download: the whole job by the client")
def test_client_runs_whole_job(official: Official, server: Server) -> None:
    source = requests(4)
    uploaded = official(lambda client: client.files.create(file=source, purpose="batch"))
    batch = official(
        lambda client: client.batches.create(
            input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h"
        )
    )
    server.follow(server.batch(batch.id))
    ended = official(lambda client: client.batches.retrieve(batch.id))
    assert ended.status == "completed"
    output = official(lambda client: client.files.content(ended.output_file_id)).content
    oracle.check(ended.to_dict(), source, output, answers=_any_answer)


@proves(
    Area.RESULTS, "Every line is in exactly one of the output and error files, once, in input order"
)
def test_output_and_error_files_cover_input(completed: Ended) -> None:
    oracle.check(
        completed.batch, completed.source, completed.output, completed.errors, answers=_any_answer
    )


@proves(Area.RESULTS, "Statuses only move along OpenAI's machine")
def test_statuses_move_forward(completed: Ended) -> None:
    seen = [state["status"] for state in completed.history]
    assert seen == sorted(seen, key=ORDER.index)
    assert (seen[0] in ORDER[:2], seen[-1]) == (True, "completed")
    for state in completed.history:
        check_batch(state)


@proves(Area.RESULTS, "Timestamps are set once, in order, and never move")
@pytest.mark.parametrize("name", PATH)
def test_timestamp_is_set_once_and_in_order(completed: Ended, name: str) -> None:
    values = {state[name] for state in completed.history} - {None}
    assert values == {completed.batch[name]}
    earlier = [completed.batch[each] for each in PATH[: PATH.index(name)]]
    assert all(value <= completed.batch[name] for value in earlier)


@proves(Area.RESULTS, "Timestamps are set once, in order, and never move")
@pytest.mark.parametrize("name", ["failed_at", "expired_at", "cancelling_at", "cancelled_at"])
def test_timestamp_of_other_end_is_null(completed: Ended, name: str) -> None:
    assert completed.batch[name] is None


@proves(Area.RESULTS, "`request_counts` add up at every read")
def test_request_counts_add_up(completed: Ended) -> None:
    last = None
    for state in completed.history:
        counts = state["request_counts"]
        assert counts["completed"] + counts["failed"] <= counts["total"]
        assert last is None or all(counts[name] >= last[name] for name in counts)
        last = counts
    total = len(oracle.input_lines(completed.source))
    output, errors = oracle.outcomes(completed.output), oracle.outcomes(completed.errors)
    assert last == {"total": total, "completed": len(output), "failed": len(errors)}


@proves(Area.RESULTS, "`usage` is the sum of the answers' usage")
def test_usage_sums_answers(completed: Ended) -> None:
    answers = [line.body["usage"] for line in oracle.outcomes(completed.output)]
    usage = completed.batch["usage"]
    assert usage["input_tokens"] == sum(answer["prompt_tokens"] for answer in answers) > 0
    assert usage["output_tokens"] == sum(answer["completion_tokens"] for answer in answers) > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    for name, part, whole in (
        ("input_tokens_details", "cached_tokens", "prompt_tokens_details"),
        ("output_tokens_details", "reasoning_tokens", "completion_tokens_details"),
    ):
        parts = [(answer.get(whole) or {}).get(part) or 0 for answer in answers]
        assert usage[name] == {part: sum(parts)}


@proves(Area.RESULTS, "`model` is the one that the lines name")
def test_model_is_that_of_requests(completed: Ended) -> None:
    assert completed.batch["model"] == MODEL


@proves(Area.RESULTS, "`metadata` comes back as it was given")
def test_metadata_is_returned(completed: Ended) -> None:
    assert all(state["metadata"] == {"team": "harbour"} for state in completed.history)


@proves(
    Area.RESULTS, "Output lines: id, custom_id, response {status_code, request_id, body}, error"
)
def test_output_lines_have_documented_shape(completed: Ended) -> None:
    lines = [json.loads(line) for line in completed.output.splitlines()]
    assert lines
    for line in lines:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["id"].startswith("batch_req_")
        assert (line["response"]["status_code"], line["error"]) == (200, None)
        assert isinstance(line["response"]["request_id"], str)


@proves(Area.RESULTS, "An answer that is no success goes to the error file, in the same shape")
def test_unsuccessful_answers_are_in_error_file(completed: Ended, own: Own) -> None:
    del own
    lines = oracle.outcomes(completed.errors)
    assert [line.custom_id.rpartition("-")[2] for line in lines] == ["2", "6", "10"]
    for line in lines:
        assert (line.status_code, line.error) == (400, None)
        assert line.body["error"]["message"] == "The engine refuses this."


@proves(Area.RESULTS, "Every line is one line to any reader: U+2028, U+2029, U+0085 are escaped")
def test_unicode_line_breaks_are_escaped(server: Server) -> None:
    odd = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b"
    source = json.dumps(request(odd, odd), ensure_ascii=False).encode()
    ended = server.finish(server.create(source))
    results = server.http.get(f"/v1/batches/{ended['id']}/results").content
    for content in (server.content(ended["output_file_id"]), results):
        (line,) = content.decode().splitlines()
        assert json.loads(line)["custom_id"] == odd


@proves(Area.RESULTS, "Without failures there is no error file")
def test_batch_without_failures_has_no_error_file(server: Server) -> None:
    ended = server.finish(server.create(requests(1)))
    assert (ended["error_file_id"], bool(ended["output_file_id"])) == (None, True)


@proves(Area.RESULTS, "The files are File objects of purpose `batch_output`")
@pytest.mark.parametrize("role", ["output", "error"])
def test_output_and_error_files_are_file_objects(
    completed: Ended, server: Server, role: str
) -> None:
    file_id = completed.batch[f"{role}_file_id"]
    if role == "error" and server.own is None:
        pytest.skip("no request fails on this server")
    raw = server.json(f"/v1/files/{file_id}")
    file = check_file(raw)
    content = completed.output if role == "output" else completed.errors
    assert (file.purpose, file.status, file.bytes) == ("batch_output", "processed", len(content))
    assert file.filename == f"{completed.batch['id']}_{role}.jsonl"


@proves(Area.RESULTS, "`output_expires_after` counts from the files' creation")
def test_output_file_expires_after_its_creation(completed: Ended, server: Server) -> None:
    file = server.json(f"/v1/files/{completed.batch['output_file_id']}")
    assert file["expires_at"] == file["created_at"] + OUTPUT_EXPIRY
    assert file["created_at"] >= completed.batch["in_progress_at"]


@proves(Area.RESULTS, "An output file can be deleted")
def test_output_file_can_be_deleted(official: Official, server: Server) -> None:
    ended = server.finish(server.create(requests(1)))
    assert official(lambda client: client.files.delete(ended["output_file_id"])).deleted
    assert server.batch(ended["id"])["status"] == "completed"
