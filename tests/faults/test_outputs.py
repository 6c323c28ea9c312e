"""Output files for odd answers of engines and for odd inputs.

Each case runs on its own small input, and on the one in `../shared/data/cases` if it exists.
"""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StackFactory
    from tests.e2e.stacks import LocalStack

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"
CHAT, EMBEDDINGS, MODERATIONS = "/v1/chat/completions", "/v1/embeddings", "/v1/moderations"
SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
DIMENSIONS = 1024
USAGE = {
    "prompt_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens": 7,
    "completion_tokens_details": {"reasoning_tokens": 5},
}
_SCRIPT: dict[str, Any] = {
    "ERR200": {"error": {"message": "No such tool.", "type": "invalid_request_error"}},
    "NULLBODY": None,
    "ARRAY": [1, 2],
    "SURROGATE": {"choices": [{"message": {"content": "half \ud83d"}}]},
    "DETUSAGE": {"choices": [], "usage": USAGE},
}
HEALTHY = "well"
"""The content of requests that show that the engine works."""


def _answer(body: dict[str, Any]) -> Any:
    """Return the scripted answer to the message, or an echo of it."""
    content = body["messages"][0]["content"] if "messages" in body else ""
    if content in _SCRIPT:
        return _SCRIPT[content]
    if isinstance(body.get("input"), list):
        vector = [0.12345678901234567] * DIMENSIONS
        return {"data": [{"embedding": vector} for _ in body["input"]]}
    return {"choices": [{"message": {"content": content}}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        """Report a healthy engine."""
        self._send(200, b'{"object":"list","data":[]}')

    def do_POST(self) -> None:
        """Answer at paths with a trailing slash only, gzip-encoded for the model `packed`."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/"):
            self._send(307, b"", Location=f"{self.path}/")
            return
        request = json.loads(body)
        # Only a lone surrogate needs escapes, as it has no UTF-8.
        ascii_only = "SURROGATE" in str(request)
        content = json.dumps(_answer(request), ensure_ascii=ascii_only).encode()
        if request.get("model") == "packed":
            self._send(200, gzip.compress(content), **{"Content-Encoding": "gzip"})
        else:
            self._send(200, content)

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def _engine() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def stack(make_stack: StackFactory) -> Iterator[LocalStack]:
    """A stack whose engine answers only at paths with a trailing slash."""
    with _engine() as url:
        yield make_stack(
            {
                "LOWTIDE_ENGINE": "openai",
                "LOWTIDE_ENGINE_URL": url,
                "LOWTIDE_SPOT_REPLICAS": "1",
                "LOWTIDE_DEDICATED_REPLICAS": "0",
                "LOWTIDE_WORKER_POLL_CAP": "0.5",
                "LOWTIDE_MAX_ATTEMPTS": "1",
            }
        )


def _chat(custom_id: str, content: str, **body: Any) -> bytes:
    line = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": [{"role": "user", "content": content}], **body},
    }
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


OWN = {
    "separators": _chat(f"a{SEPARATORS}b", f"x{SEPARATORS}y"),
    "stream-true": _chat("a", "hi", stream=True),
    "error-in-200": _chat("e", "ERR200") + _chat("f", "NULLBODY") + _chat("g", "ARRAY"),
    "lone-surrogate": _chat("s", "half @").replace(b"@", rb"\ud83d") + _chat("ok", "hi"),
    "usage-details": _chat("d", "DETUSAGE") + _chat("d2", "DETUSAGE"),
    "moderations-without-model": json.dumps(
        {"custom_id": "m", "method": "POST", "url": MODERATIONS, "body": {"input": "hi"}}
    ).encode(),
    "embedding-16MiB": json.dumps(
        {
            "custom_id": "w",
            "method": "POST",
            "url": EMBEDDINGS,
            "body": {"model": "wide", "input": ["t"] * 1000},
        }
    ).encode(),
}


class FinishedBatch:
    """A finished batch and its files."""

    def __init__(self, stack: LocalStack, source: bytes, endpoint: str = CHAT) -> None:
        self.source = source
        self.created = stack.submit(stack.upload(source), endpoint)
        self.batch = stack.follow(self.created)[-1]
        self.contents = {
            role: stack.content(self.batch[f"{role}_file_id"]).decode()
            for role in ("output", "error")
        }

    def lines(self, role: str) -> list[dict[str, Any]]:
        """Return a file's lines as split by any Unicode line break."""
        return [json.loads(line) for line in self.contents[role].splitlines()]


@pytest.fixture(params=["own", "shared"])
def cases(request: pytest.FixtureRequest) -> dict[str, bytes]:
    """The input files by name."""
    if request.param == "own":
        return OWN
    if not CASES.is_dir():
        pytest.skip("needs ../shared/data/cases")
    return {path.stem: path.read_bytes() for path in CASES.glob("*.jsonl")}


def test_unicode_line_breaks_do_not_split_lines(stack: LocalStack, cases: dict[str, bytes]) -> None:
    finished = FinishedBatch(stack, cases["separators"])
    (request,) = oracle.input_lines(finished.source)
    (line,) = finished.lines("output")
    assert line["custom_id"] == request.custom_id
    content = line["response"]["body"]["choices"][0]["message"]["content"]
    assert content == request.body["messages"][0]["content"]
    path = f"{stack.base_url}/v1/batches/{finished.created}/results"
    results = stack.client.get(path, cast_to=str)
    assert [json.loads(each)["custom_id"] for each in results.splitlines()] == [request.custom_id]


def test_stream_option_fails_validation(stack: LocalStack, cases: dict[str, bytes]) -> None:
    batch = FinishedBatch(stack, cases["stream-true"]).batch
    (problem,) = batch["errors"]["data"]
    assert batch["status"] == "failed"
    assert (problem["param"], problem["line"]) == ("body.stream", 1)


def test_error_in_200_response_counts_as_failure(
    stack: LocalStack, cases: dict[str, bytes]
) -> None:
    healthy = b"".join(_chat(f"{HEALTHY}-{number}", HEALTHY) for number in range(20))
    finished = FinishedBatch(stack, healthy + cases["error-in-200"])
    assert len(finished.lines("output")) == 20
    failed = {line["custom_id"]: line["response"] for line in finished.lines("error")}
    assert failed["e"]["status_code"] == 400
    assert failed["e"]["body"]["error"]["message"] == "No such tool."
    assert (failed["f"]["status_code"], failed["f"]["body"]) == (500, None)
    assert (failed["g"]["status_code"], failed["g"]["body"]) == (500, [1, 2])


def test_lone_surrogate_in_input_fails_one_request(
    stack: LocalStack, cases: dict[str, bytes]
) -> None:
    finished = FinishedBatch(stack, cases["lone-surrogate"])
    assert finished.batch["status"] == "completed"
    assert [line["custom_id"] for line in finished.lines("output")] == ["ok"]
    (failed,) = finished.lines("error")
    assert (failed["custom_id"], failed["error"]["code"]) == ("s", "invalid_unicode")
    assert "Line 1 " in failed["error"]["message"]


def test_lone_surrogate_in_answer_fails_one_request(stack: LocalStack) -> None:
    finished = FinishedBatch(stack, _chat("a", "hi") + _chat("b", "SURROGATE") + _chat("c", "hi"))
    assert [line["custom_id"] for line in finished.lines("output")] == ["a", "c"]
    (failed,) = finished.lines("error")
    assert (failed["custom_id"], failed["error"]["code"]) == ("b", "invalid_response")


def test_usage_details_are_summed(stack: LocalStack, cases: dict[str, bytes]) -> None:
    finished = FinishedBatch(stack, cases["usage-details"])
    count = len(oracle.input_lines(finished.source))
    assert len(finished.lines("output")) == count
    assert finished.batch["usage"] == {
        "input_tokens": 9 * count,
        "input_tokens_details": {"cached_tokens": 4 * count},
        "output_tokens": 7 * count,
        "output_tokens_details": {"reasoning_tokens": 5 * count},
        "total_tokens": 16 * count,
    }


def test_moderations_need_no_model(stack: LocalStack, cases: dict[str, bytes]) -> None:
    finished = FinishedBatch(stack, cases["moderations-without-model"], MODERATIONS)
    assert (finished.batch["status"], finished.batch.get("model")) == ("completed", None)
    assert [line["custom_id"] for line in finished.lines("output")] == ["m"]


def test_answer_of_16_mib_reaches_output_file(stack: LocalStack, cases: dict[str, bytes]) -> None:
    finished = FinishedBatch(stack, cases["embedding-16MiB"], EMBEDDINGS)
    assert finished.batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert len(finished.contents["output"]) > 16 << 20
    (line,) = finished.lines("output")
    assert len(line["response"]["body"]["data"]) == 1000


def test_gzip_encoded_answer_is_decoded(stack: LocalStack) -> None:
    finished = FinishedBatch(stack, _chat("a", "ö", model="packed"))
    (line,) = finished.lines("output")
    assert line["response"]["body"]["choices"][0]["message"]["content"] == "ö"
