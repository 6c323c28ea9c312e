"""A real engine, llama.cpp on the CPU, answers batches; it is killed in the middle of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from lowtide.local.ports import HOST, free_port
from tests import oracle
from tests.e2e.command import clean_environment, lowtide
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.e2e.conftest import StackFactory
    from tests.e2e.stacks import LocalStack
    from tests.oracle import InputLine

PYTHON = Path(sys.prefix) / "llama" / "bin" / "python"
SERVER = Path(__file__).with_name("llama_server.py")
MODEL, CONTEXT, SLOTS = "tiny", 512, 2
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs llama.cpp: make llama")


class Llama:
    """A llama.cpp server that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._model = folder / "tiny.gguf"
        self._log = folder / "llama.log"
        self._port = free_port()
        self.url = f"http://{HOST}:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until its model is loaded."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [PYTHON, SERVER, self._model, str(self._port)],
                env=clean_environment(),
                stdout=log,
                stderr=log,
            )
        until(self._is_ready, "the model is loaded")

    def kill(self) -> None:
        """Kill it, with all that it runs."""
        self._process.kill()
        self._process.wait()

    def metrics(self) -> dict[str, float]:
        """Return its counters and gauges."""
        with urlopen(f"{self.url}/metrics", timeout=10) as reply:  # noqa: S310
            lines = reply.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urlopen(f"{self.url}/health", timeout=10) as reply:  # noqa: S310
                return bool(reply.status == 200)
        except (URLError, ConnectionError):
            return False


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    """The engine."""
    server = Llama(tmp_path_factory.mktemp("llama"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def stack(make_stack: StackFactory, llama: Llama) -> LocalStack:
    """A stack of which llama.cpp is the engine, with all defaults for a real one."""
    return make_stack(
        {
            "LOWTIDE_ENGINE": "openai",
            "LOWTIDE_ENGINE_URL": llama.url,
            "LOWTIDE_RETRY_BASE": "0.2",
            "LOWTIDE_RETRY_CAP": "2",
            "LOWTIDE_WORKER_POLL_CAP": "0.5",
        }
    )


def batch_file(endpoint: str, bodies: Sequence[dict[str, Any]]) -> bytes:
    """Return a batch file of these bodies."""
    head = {"method": "POST", "url": endpoint}
    lines = [
        {"custom_id": f"r{n}", **head, "body": {"model": MODEL, **body}}
        for n, body in enumerate(bodies)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def chat(text: str, tokens: int) -> dict[str, Any]:
    """Return a chat request; without ignore_eos, random weights would end answers anywhere."""
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": tokens, "ignore_eos": True}


def answered(request: InputLine, body: Any) -> None:
    """Assert that an answer is as long as its request asks for, and its usage adds up."""
    usage = body["usage"]
    assert body["model"] == MODEL
    assert body["choices"][0]["finish_reason"] == "length"
    assert usage["completion_tokens"] == request.body["max_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # A token per character, and some more of the template.
    text = request.body["messages"][0]["content"]
    assert 0 < usage["prompt_tokens"] - len(text) < 40


def test_chat_completions_are_answered_and_counted(stack: LocalStack, llama: Llama) -> None:
    source = batch_file(CHAT, [chat(f"Question {n:02}?", 5 + n) for n in range(40)])
    before = llama.metrics()
    final = stack.finish(stack.submit(stack.upload(source)), source, answers=answered)
    after = llama.metrics()

    def counted(name: str) -> float:
        return after[f"llamacpp:{name}_total"] - before[f"llamacpp:{name}_total"]

    usage = final["usage"]
    assert usage["output_tokens"] == sum(range(5, 45)) == counted("tokens_predicted")
    assert usage["input_tokens"] == counted("prompt_tokens") + counted("prompt_tokens_cached")


def test_embeddings_are_answered_and_counted(stack: LocalStack) -> None:
    source = batch_file(EMBEDDINGS, [{"input": f"Text {n:02}"} for n in range(20)])

    def embedded(_: InputLine, body: Any) -> None:
        assert len(body["data"][0]["embedding"]) == 64
        assert body["usage"]["prompt_tokens"] > len("Text 00")

    batch = stack.submit(stack.upload(source), EMBEDDINGS)
    usage = stack.finish(batch, source, answers=embedded)["usage"]
    assert (usage["input_tokens"] > 20 * len("Text 00"), usage["output_tokens"]) == (True, 0)


def test_check_prints_what_it_supports(llama: Llama) -> None:
    checked = lowtide("engines", "check", llama.url, "--model", MODEL, "--json")
    report = json.loads(checked.stdout)
    assert report["kind"] == "llama.cpp"
    assert report["models"] == [{"name": MODEL, "context": CONTEXT}]
    assert report["max_running"] == SLOTS
    assert report["structured_output"] is True
    assert report["takes_images"] is False
    assert {name for name, reason in report["endpoints"].items() if not reason} == {
        CHAT,
        EMBEDDINGS,
        "/v1/completions",
        "/v1/responses",
    }
    assert MODEL in lowtide("engines", "check", llama.url).stdout


def test_a_request_beyond_the_context_fails_alone(stack: LocalStack) -> None:
    bodies = [chat(f"Question {n}?", 8) for n in range(12)]
    bodies[5] = chat("x" * (2 * CONTEXT), 8)
    source = batch_file(CHAT, bodies)
    batch = stack.submit(stack.upload(source))
    final = stack.finish(batch, source, answers=answered)
    (failed,) = oracle.outcomes(stack.content(final["error_file_id"]))
    assert (failed.custom_id, failed.status_code) == ("r5", 400)
    assert failed.body["error"]["type"] == "exceed_context_size_error"
    assert failed.body["error"]["n_ctx"] == CONTEXT
    assert final["usage"]["output_tokens"] == 11 * 8
    rows = stack.query(
        "SELECT line, attempts, input_tokens FROM results WHERE batch_id = :batch",
        batch=batch.removeprefix("batch_"),
    )
    assert {row.attempts for row in rows} == {1}
    assert [row.line for row in rows if not row.input_tokens] == [6]


def test_a_killed_engine_loses_nothing(stack: LocalStack, llama: Llama) -> None:
    requests = 120
    source = batch_file(CHAT, [chat(f"Question {n:03}?", 440) for n in range(requests)])
    batch = stack.submit(stack.upload(source))
    done = "SELECT count(*) AS n FROM results WHERE batch_id = :batch"
    row = batch.removeprefix("batch_")
    until(lambda: stack.query(done, batch=row)[0].n >= 10, "some are done", every=0.01)
    llama.kill()
    assert stack.query(done, batch=row)[0].n < requests
    shut_off = "SELECT 1 FROM workers WHERE engine_state IN ('open', 'probing')"
    until(lambda: stack.query(shut_off), "the worker notices")
    llama.start()
    final = stack.finish(batch, source, answers=answered)
    assert final["request_counts"]["completed"] == requests
    attempts = stack.query(
        "SELECT DISTINCT attempts FROM results WHERE batch_id = :batch", batch=row
    )
    assert [each.attempts for each in attempts] == [1]
