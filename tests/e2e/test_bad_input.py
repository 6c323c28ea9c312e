"""Bad input gets an error in OpenAI's shape with the right status and leaves nothing behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.conftest import SMALL_FILE
from tests.e2e.questions import chat_file
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.stacks import LocalStack

TABLES = ("files", "batches", "requests", "queue", "outbox")
UNKNOWN = "file-" + "0" * 32
FORM = "multipart/form-data; boundary=tide"
PART = b'--tide\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
END = b"\r\n--tide--\r\n"


@pytest.fixture
def unchanged_stack(anonymous_stack: LocalStack) -> Iterator[LocalStack]:
    """A stack whose state must not change during the test."""
    before = stored_state(anonymous_stack)
    yield anonymous_stack
    until(lambda: stored_state(anonymous_stack) == before, "nothing is left behind", within=20)


def stored_state(stack: LocalStack) -> tuple[set[str], list[int]]:
    """Return the names of all objects, and the number of rows of each table."""
    rows = [stack.query(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES]  # noqa: S608
    return stack.objects(), rows


def assert_error(response: httpx.Response, status: int, kind: str = "invalid_request_error") -> Any:
    """Assert the shape of an error and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == kind
    assert body["error"]["message"]
    return body["error"]


def form(data: bytes, purpose: bytes = b"") -> bytes:
    """Return a form with a file and an optional purpose."""
    field = b'--tide\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose + b"\r\n"
    return (field if purpose else b"") + PART + data + END


UPLOADS = {
    "wrong purpose": (400, FORM, form(chat_file(2), b"fine-tune"), "purpose"),
    "no file part": (400, FORM, b'--tide\r\nContent-Disposition: form-data; name="x"\r\n\r\n1' + END, "file"),
    "empty form": (400, FORM, b"--tide--\r\n", "file"),
    "truncated in the file": (400, FORM, PART + chat_file(2)[:100], "file"),
    "truncated in a header": (400, FORM, PART[:60], "file"),
    "another boundary": (400, "multipart/form-data; boundary=ebb", form(chat_file(2)), "file"),
    "no boundary": (415, "multipart/form-data", form(chat_file(2)), None),
    "JSON": (415, "application/json", b'{"file":"x"}', None),
    "no content type": (415, "", chat_file(2), None),
    "too large": (413, FORM, form(chat_file(2) + b" " * SMALL_FILE), "file"),
}  # fmt: skip


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("name", UPLOADS)
def test_bad_upload_gets_error_and_leaves_nothing(
    unchanged_stack: LocalStack, name: str, *, chunked: bool
) -> None:
    status, content_type, body, param = UPLOADS[name]
    pieces = (body[start : start + 4096] for start in range(0, len(body), 4096))
    answer = httpx.post(
        f"{unchanged_stack.base_url}/v1/files",
        headers={"Content-Type": content_type} if content_type else {},
        content=pieces if chunked else body,
        timeout=30,
    )
    assert assert_error(answer, status)["param"] == param


BATCHES: dict[str, tuple[int, str, bytes]] = {
    "unknown file": (404, "application/json", json.dumps({"input_file_id": UNKNOWN}).encode()),
    "no file": (400, "application/json", b"{}"),
    "not a file id": (400, "application/json", b'{"input_file_id":"../../etc/passwd"}'),
    "not JSON": (400, "application/json", b"{"),
    "not an object": (400, "application/json", b"[]"),
    "not UTF-8": (400, "application/json", b'{"input_file_id":"\xff"}'),
    "a form": (415, "application/x-www-form-urlencoded", b"input_file_id=x"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_bad_batch_request_gets_error_and_leaves_nothing(
    unchanged_stack: LocalStack, name: str
) -> None:
    status, content_type, body = BATCHES[name]
    answer = httpx.post(
        f"{unchanged_stack.base_url}/v1/batches",
        headers={"Content-Type": content_type},
        content=body,
        timeout=30,
    )
    assert_error(answer, status)


@pytest.mark.parametrize(
    ("field", "value"),
    [("endpoint", "/v1/images"), ("completion_window", "1s"), ("completion_window", "soon")],
)
def test_bad_batch_parameter_is_named_in_error(
    anonymous_stack: LocalStack, field: str, value: str
) -> None:
    file = anonymous_stack.upload(chat_file(1))
    before = stored_state(anonymous_stack)
    answer = httpx.post(
        f"{anonymous_stack.base_url}/v1/batches",
        json={"input_file_id": file, field: value},
        timeout=30,
    )
    assert assert_error(answer, 400)["param"] == field
    assert stored_state(anonymous_stack) == before


PATHS = [
    ("GET", "/v1/files/" + UNKNOWN, 404),
    ("GET", f"/v1/files/{UNKNOWN}/content", 404),
    ("DELETE", "/v1/files/" + UNKNOWN, 404),
    ("GET", "/v1/files/%2e%2e%2fsecrets.json/content", 404),
    ("GET", "/v1/batches/batch_" + "0" * 32, 404),
    ("GET", "/v1/batches/nonsense", 404),
    ("POST", "/v1/batches/nonsense/cancel", 404),
    ("GET", "/v1/batches?limit=0", 400),
    ("GET", "/v1/batches?after=nonsense", 404),
    ("GET", "/v1/nothing", 404),
    ("PUT", "/v1/files", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), PATHS)
def test_bad_path_or_method_gets_openai_error(
    unchanged_stack: LocalStack, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, unchanged_stack.base_url + path, timeout=30)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


BROKEN = b"".join(
    [
        chat_file(1),
        b"not json\n",
        b'{"custom_id":"line-1","method":"POST","url":"/v1/chat/completions","body":{"model":"tide-1"}}\n',
        b'{"custom_id":"other","method":"POST","url":"/v1/chat/completions","body":{"model":"ebb-1"}}\n',
        b'{"custom_id":"\xff","method":"POST","url":"/v1/chat/completions","body":{"model":"tide-1"}}\n',
        b'{"method":"GET","url":"/v1/images","body":[]}\n',
    ]
)


def test_malformed_lines_fail_batch_with_line_numbers(anonymous_stack: LocalStack) -> None:
    client = anonymous_stack.client
    file = client.files.create(file=("broken.jsonl", BROKEN), purpose="batch")
    assert file.status == "error"
    assert "line 2" in (file.status_details or "")
    batch = anonymous_stack.submit(file.id)
    failed = anonymous_stack.follow(batch)[-1]
    assert failed["status"] == "failed"
    problems = failed["errors"]["data"]
    assert [problem["line"] for problem in problems] == [2, 3, 5, 6, 6, 6, 6]
    assert {problem["code"] for problem in problems} >= {
        "invalid_json_line",
        "duplicate_custom_id",
        "invalid_utf8",
        "missing_custom_id",
        "invalid_method",
        "invalid_url",
    }
    assert failed["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert failed["output_file_id"] is failed["error_file_id"] is None
    for table in ("requests", "queue", "results"):
        rows = anonymous_stack.query(
            f"SELECT 1 FROM {table} WHERE batch_id = :batch",  # noqa: S608
            batch=batch.removeprefix("batch_"),
        )
        assert not rows
    client.files.delete(file.id)
    assert file.id.removeprefix("file-") not in "".join(anonymous_stack.objects())


@pytest.mark.parametrize(
    "data", [b"", b"\n\r\n", b"\xef\xbb\xbf"], ids=["nothing", "blank lines", "only a BOM"]
)
def test_empty_file_fails_batch(anonymous_stack: LocalStack, data: bytes) -> None:
    file = anonymous_stack.client.files.create(file=("empty.jsonl", data), purpose="batch")
    assert file.status == "error"
    failed = anonymous_stack.follow(anonymous_stack.submit(file.id))[-1]
    assert (failed["status"], failed["errors"]["data"][0]["code"]) == ("failed", "empty_file")


def test_deleting_input_file_does_not_affect_its_batch(anonymous_stack: LocalStack) -> None:
    file = anonymous_stack.upload(chat_file(50))
    batch = anonymous_stack.submit(file)
    assert (
        httpx.delete(f"{anonymous_stack.base_url}/v1/files/{file}", timeout=30).status_code == 200
    )
    assert_error(httpx.get(f"{anonymous_stack.base_url}/v1/files/{file}", timeout=30), 404)
    final = anonymous_stack.follow(batch)[-1]
    assert final["status"] == "completed"
    assert final["request_counts"] == {"total": 50, "completed": 50, "failed": 0}
    until(
        lambda: file.removeprefix("file-") not in "".join(anonymous_stack.objects()),
        "the input object is removed after its batch",
        within=60,
    )
