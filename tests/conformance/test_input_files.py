"""Accepted input files, and the problems reported of refused ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle
from tests.conformance.features import Area, proves
from tests.conformance.lines import CHAT, ENDPOINTS, jsonl, request, requests
from tests.conformance.shapes import check_batch

if TYPE_CHECKING:
    from tests.conformance.server import Own, Server

MODERATIONS = "/v1/moderations"
VALID = request("good")
BOM = b"\xef\xbb\xbf"


def _line(**changes: Any) -> dict[str, Any]:
    """Return a line with some fields changed; None removes a field."""
    return {name: value for name, value in {**VALID, **changes}.items() if value is not None}


def _body(**changes: Any) -> dict[str, Any]:
    return _line(body={**VALID["body"], **changes})


ACCEPTED = {
    "byte-order-mark": BOM + requests(2),
    "crlf": requests(2).replace(b"\n", b"\r\n"),
    "blank-lines": b"\n\n" + requests(2).replace(b"\n", b"\n \t\n"),
    "no-last-newline": requests(2)[:-1],
    "mark-and-crlf-without-last": BOM + requests(2).replace(b"\n", b"\r\n")[:-2],
    "custom_id-of-512-characters": jsonl(request("水" * 512), request("b")),
    "unknown-fields": jsonl({**VALID, "priority": 1}, request("b")),
    "numbers-beyond-any-type": jsonl(VALID, request("b")).replace(
        b'"model"', b'"seed": 123456789012345678901234567890, "x": 1e999, "model"'
    ),
    "escapes": jsonl(request("\u2028\t\\\"'é😀"), request("b", "\U0001f30a")),
}
REFUSED: dict[str, tuple[bytes, str, str | None, int | None]] = {
    "empty-file": (b"", "empty_file", None, None),
    "only-blank-lines": (b"\n \n\r\n", "empty_file", None, None),
    "no-json": (jsonl(VALID) + b"hello\n", "invalid_json_line", None, 2),
    "no-object": (jsonl(VALID) + b"[1]\n", "invalid_json_line", None, 2),
    "nan": (b'{"custom_id": NaN}\n', "invalid_json_line", None, 1),
    "cut-off": (jsonl(VALID)[:-20], "invalid_json_line", None, 1),
    "two-on-a-line": (jsonl(VALID)[:-1] + jsonl(request("b")), "invalid_json_line", None, 1),
    "invalid-utf8": (jsonl(VALID).replace(b"How", b"\xff"), "invalid_utf8", None, 1),
    "nested-too-deeply": (
        jsonl(VALID).replace(b'"model"', b'"x": ' + b"[" * 2000 + b"]" * 2000 + b', "model"'),
        "nested_too_deeply",
        None,
        1,
    ),
    "no-custom_id": (jsonl(_line(custom_id=None)), "missing_custom_id", "custom_id", 1),
    "empty-custom_id": (jsonl(_line(custom_id="")), "missing_custom_id", "custom_id", 1),
    "number-as-custom_id": (jsonl(_line(custom_id=7)), "invalid_custom_id", "custom_id", 1),
    "long-custom_id": (jsonl(request("x" * 513)), "invalid_custom_id", "custom_id", 1),
    "nul-in-custom_id": (jsonl(request("a\x00")), "invalid_custom_id", "custom_id", 1),
    "custom_id-twice": (jsonl(VALID, request("b"), VALID), "duplicate_custom_id", "custom_id", 3),
    "no-method": (jsonl(_line(method=None)), "invalid_method", "method", 1),
    "another-method": (jsonl(_line(method="GET")), "invalid_method", "method", 1),
    "no-url": (jsonl(_line(url=None)), "invalid_url", "url", 1),
    "another-url": (jsonl(_line(url="/v1/embeddings")), "invalid_url", "url", 1),
    "whole-url": (jsonl(_line(url=f"https://api.example{CHAT}")), "invalid_url", "url", 1),
    "no-body": (jsonl(_line(body=None)), "missing_body", "body", 1),
    "body-no-object": (jsonl(_line(body="text")), "invalid_body", "body", 1),
    "no-model": (jsonl(_body(model=None)), "missing_model", "body.model", 1),
    "number-as-model": (jsonl(_body(model=7)), "invalid_model", "body.model", 1),
    "stream": (jsonl(_body(stream=True)), "stream_not_supported", "body.stream", 1),
}
"""Each with the code, the param and the line that must be reported."""


@pytest.fixture(scope="module")
def accepted(server: Server) -> dict[str, dict[str, Any]]:
    """Batches of all accepted files, created together."""
    return {name: server.create(data) for name, data in ACCEPTED.items()}


@pytest.fixture(scope="module")
def refused(server: Server) -> dict[str, dict[str, Any]]:
    """Batches of all refused files, created together."""
    return {name: server.create(data) for name, (data, *_) in REFUSED.items()}


@pytest.fixture(scope="module")
def by_endpoint(server: Server) -> dict[str, dict[str, Any]]:
    """One batch for each endpoint, created together."""
    return {
        endpoint: server.create(requests(3, endpoint=endpoint), endpoint=endpoint)
        for endpoint in ENDPOINTS
    }


@proves(
    Area.INPUT,
    "Lines for `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/responses`, `/v1/moderations`",
)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_requests_of_endpoint_complete(
    server: Server, by_endpoint: dict[str, dict[str, Any]], endpoint: str
) -> None:
    ended = server.finish(by_endpoint[endpoint])
    assert (ended["status"], ended["endpoint"]) == ("completed", endpoint)
    output = oracle.outcomes(server.content(ended["output_file_id"]))
    assert [line.status_code for line in output] == [200, 200, 200]
    assert [line.custom_id for line in output] == ["line-1", "line-2", "line-3"]


@proves(Area.INPUT, "Byte order mark, CRLF, blank lines and a missing last newline are accepted")
@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_file_completes(
    server: Server, accepted: dict[str, dict[str, Any]], name: str
) -> None:
    created = accepted[name]
    assert server.json(f"/v1/files/{created['input_file_id']}")["status"] == "processed"
    ended = server.finish(created)
    assert (ended["status"], ended["errors"]) == ("completed", None)
    outcomes = oracle.outcomes(server.content(ended["output_file_id"]))
    lines = oracle.input_lines(ACCEPTED[name])
    assert [line.custom_id for line in outcomes] == [line.custom_id for line in lines]


@proves(
    Area.INPUT, "A bad file makes its batch `failed`, with `errors` that name line, param and code"
)
@pytest.mark.parametrize("name", REFUSED)
def test_refused_file_fails_batch_with_errors(
    server: Server, refused: dict[str, dict[str, Any]], name: str
) -> None:
    _, code, param, line = REFUSED[name]
    ended = server.finish(refused[name])
    batch = check_batch(ended)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    reported = [(problem.code, problem.param, problem.line) for problem in batch.errors.data]
    assert (code, param, line) in reported
    assert all(problem.message for problem in batch.errors.data)
    assert ended["failed_at"] >= ended["created_at"]
    assert (ended["in_progress_at"], ended["output_file_id"], ended["error_file_id"]) == (None,) * 3
    assert ended["request_counts"] == {"total": 0, "completed": 0, "failed": 0}


@proves(Area.INPUT, "Beyond OpenAI: one file may have requests of several models")
def test_one_file_may_mix_models(server: Server) -> None:
    lines = jsonl(VALID, {**_body(model="other"), "custom_id": "b"})
    ended = server.finish(server.create(lines))
    assert (ended["status"], ended["model"], ended["errors"]) == ("completed", None, None)
    assert ended["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    output = server.content(ended["output_file_id"]).splitlines()
    answers = [json.loads(line)["response"]["body"] for line in output]
    assert [answer["model"] for answer in answers] == [VALID["body"]["model"], "other"]


@proves(Area.INPUT, "`model` is optional for moderations")
def test_moderations_need_no_model(server: Server) -> None:
    lines = [request(name, endpoint=MODERATIONS) for name in ("a", "b")]
    for line in lines:
        del line["body"]["model"]
    ended = server.finish(server.create(jsonl(*lines), endpoint=MODERATIONS))
    assert (ended["status"], ended["model"], ended["errors"]) == ("completed", None, None)
    assert ended["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


@proves(Area.INPUT, "Half a character (a lone surrogate) costs its request, not the file")
def test_lone_surrogate_fails_only_its_request(server: Server) -> None:
    source = jsonl(request("half", "How high \ud83d?"), request("whole"))
    ended = server.finish(server.create(source))
    assert (ended["status"], ended["errors"]) == ("completed", None)
    (failed,) = oracle.outcomes(server.content(ended["error_file_id"]))
    assert failed.error is not None
    assert (failed.custom_id, failed.error["code"]) == ("half", "invalid_unicode")
    assert "Line 1 " in failed.error["message"]
    (answered,) = oracle.outcomes(server.content(ended["output_file_id"]))
    assert (answered.custom_id, answered.status_code) == ("whole", 200)


@proves(Area.INPUT, "A bad file is told at once in the File's `status_details`")
@pytest.mark.parametrize("name", [name for name in REFUSED if name != "another-url"])
def test_refused_file_is_reported_at_upload(
    server: Server, refused: dict[str, dict[str, Any]], name: str
) -> None:
    _, _, _, line = REFUSED[name]
    uploaded = server.json(f"/v1/files/{refused[name]['input_file_id']}")
    assert uploaded["status"] == "error"
    assert line is None or f"line {line}:" in uploaded["status_details"]


@proves(Area.INPUT, "All problems are told together, up to 100")
def test_problems_are_reported_together_up_to_100(server: Server) -> None:
    source = b"".join(json.dumps({"custom_id": number}).encode() + b"\n" for number in range(60))
    errors = server.finish(server.create(source))["errors"]["data"]
    assert len(errors) == 100
    assert [problem["line"] for problem in errors] == sorted(p["line"] for p in errors)


@proves(Area.INPUT, "Up to 50,000 lines; the limit is a setting")
@pytest.mark.parametrize("extra", [0, 1], ids=["at-the-limit", "over-the-limit"])
def test_number_of_lines_is_limited(server: Server, own: Own, extra: int) -> None:
    max_lines = int(own.stack.settings["LOWTIDE_MAX_BATCH_LINES"])
    ended = server.finish(server.create(requests(max_lines + extra)))
    if extra:
        assert [problem["code"] for problem in ended["errors"]["data"]] == ["too_many_requests"]
    else:
        assert ended["request_counts"] == {"total": max_lines, "completed": max_lines, "failed": 0}


@proves(Area.INPUT, "A line has a longest size; the limit is a setting")
def test_overlong_line_is_refused(server: Server, own: Own) -> None:
    max_bytes = int(own.stack.settings["LOWTIDE_MAX_LINE_BYTES"])
    source = jsonl(request("a"), request("b", "x" * max_bytes))
    errors = server.finish(server.create(source))["errors"]["data"]
    assert [(problem["code"], problem["line"]) for problem in errors] == [("line_too_long", 2)]
