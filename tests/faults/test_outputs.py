"""What output files may contain: engines that answer oddly, and inputs that went wrong once.

Each case runs on a small input of its own, and on the one of `../shared/data/cases` where that is.
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
WELL = "well"
"""Said by requests that keep the engine known as one that answers."""


def _answer(body: dict[str, Any]) -> Any:
    """Return what the engine says, as JSON: what it was told to."""
    said = body["messages"][0]["content"] if "messages" in body else ""
    if said in _SCRIPT:
        return _SCRIPT[said]
    if isinstance(body.get("input"), list):
        vector = [0.12345678901234567] * DIMENSIONS
        return {"data": [{"embedding": vector} for _ in body["input"]]}
    return {"choices": [{"message": {"content": said}}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """Say that all is well."""
        self._send(200, b'{"object":"list","data":[]}')

    def do_POST(self) -> None:
        """Answer, at the path with a last slash alone; packed where the model says so."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/"):
            self._send(307, b"", Location=f"{self.path}/")
            return
        given = json.loads(body)
        # Escapes no more than it must, but for half a character, which is no UTF-8.
        ascii_only = "SURROGATE" in str(given)
        content = json.dumps(_answer(given), ensure_ascii=ascii_only).encode()
        if given.get("model") == "packed":
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
    """A stack whose engine speaks only at paths with a last slash."""
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
    whole = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": [{"role": "user", "content": content}], **body},
    }
    return json.dumps(whole, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


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


class Ended:
    """A batch that is over, and its files' lines."""

    def __init__(self, stack: LocalStack, source: bytes, endpoint: str = CHAT) -> None:
        self.source = source
        self.created = stack.submit(stack.upload(source), endpoint)
        self.batch = stack.follow(self.created)[-1]
        self.contents = {
            role: stack.content(self.batch[f"{role}_file_id"]).decode()
            for role in ("output", "error")
        }

    def lines(self, role: str) -> list[dict[str, Any]]:
        """Return a file's lines, as a careless reader finds them."""
        return [json.loads(line) for line in self.contents[role].splitlines()]


@pytest.fixture(params=["own", "shared"])
def cases(request: pytest.FixtureRequest) -> dict[str, bytes]:
    """The inputs by name."""
    if request.param == "own":
        return OWN
    if not CASES.is_dir():
        pytest.skip("needs ../shared/data/cases")
    return {path.stem: path.read_bytes() for path in CASES.glob("*.jsonl")}


def test_every_line_is_one_line_to_any_reader(stack: LocalStack, cases: dict[str, bytes]) -> None:
    ended = Ended(stack, cases["separators"])
    (given,) = oracle.input_lines(ended.source)
    (line,) = ended.lines("output")
    assert line["custom_id"] == given.custom_id
    said = line["response"]["body"]["choices"][0]["message"]["content"]
    assert said == given.body["messages"][0]["content"]
    path = f"{stack.base_url}/v1/batches/{ended.created}/results"
    results = stack.client.get(path, cast_to=str)
    assert [json.loads(each)["custom_id"] for each in results.splitlines()] == [given.custom_id]


def test_streams_are_refused_by_name(stack: LocalStack, cases: dict[str, bytes]) -> None:
    batch = Ended(stack, cases["stream-true"]).batch
    (problem,) = batch["errors"]["data"]
    assert batch["status"] == "failed"
    assert (problem["param"], problem["line"]) == ("body.stream", 1)


def test_an_error_in_a_200_is_no_success(stack: LocalStack, cases: dict[str, bytes]) -> None:
    well = b"".join(_chat(f"{WELL}-{number}", WELL) for number in range(20))
    ended = Ended(stack, well + cases["error-in-200"])
    assert len(ended.lines("output")) == 20
    failed = {line["custom_id"]: line["response"] for line in ended.lines("error")}
    assert failed["e"]["status_code"] == 400
    assert failed["e"]["body"]["error"]["message"] == "No such tool."
    assert (failed["f"]["status_code"], failed["f"]["body"]) == (500, None)
    assert (failed["g"]["status_code"], failed["g"]["body"]) == (500, [1, 2])


def test_half_a_character_costs_one_request(stack: LocalStack, cases: dict[str, bytes]) -> None:
    ended = Ended(stack, cases["lone-surrogate"])
    assert ended.batch["status"] == "completed"
    assert [line["custom_id"] for line in ended.lines("output")] == ["ok"]
    (failed,) = ended.lines("error")
    assert (failed["custom_id"], failed["error"]["code"]) == ("s", "invalid_unicode")
    assert "Line 1 " in failed["error"]["message"]


def test_half_a_character_in_an_answer_costs_one_request(stack: LocalStack) -> None:
    ended = Ended(stack, _chat("a", "hi") + _chat("b", "SURROGATE") + _chat("c", "hi"))
    assert [line["custom_id"] for line in ended.lines("output")] == ["a", "c"]
    (failed,) = ended.lines("error")
    assert (failed["custom_id"], failed["error"]["code"]) == ("b", "invalid_response")


def test_usage_sums_its_details(stack: LocalStack, cases: dict[str, bytes]) -> None:
    ended = Ended(stack, cases["usage-details"])
    count = len(oracle.input_lines(ended.source))
    assert len(ended.lines("output")) == count
    assert ended.batch["usage"] == {
        "input_tokens": 9 * count,
        "input_tokens_details": {"cached_tokens": 4 * count},
        "output_tokens": 7 * count,
        "output_tokens_details": {"reasoning_tokens": 5 * count},
        "total_tokens": 16 * count,
    }


def test_moderations_need_no_model(stack: LocalStack, cases: dict[str, bytes]) -> None:
    ended = Ended(stack, cases["moderations-without-model"], MODERATIONS)
    assert (ended.batch["status"], ended.batch.get("model")) == ("completed", None)
    assert [line["custom_id"] for line in ended.lines("output")] == ["m"]


def test_a_large_answer_is_taken_whole(stack: LocalStack, cases: dict[str, bytes]) -> None:
    ended = Ended(stack, cases["embedding-16MiB"], EMBEDDINGS)
    assert ended.batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert len(ended.contents["output"]) > 16 << 20
    (line,) = ended.lines("output")
    assert len(line["response"]["body"]["data"]) == 1000


def test_an_encoded_answer_is_decoded(stack: LocalStack) -> None:
    ended = Ended(stack, _chat("a", "ö", model="packed"))
    (line,) = ended.lines("output")
    assert line["response"]["body"]["choices"][0]["message"]["content"] == "ö"
