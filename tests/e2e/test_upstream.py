"""Bodies pass unchanged between a batch and a real OpenAI-compatible server."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import oracle
from tests.e2e.command import clean_environment
from tests.e2e.test_main_job import GSM8K
from tests.e2e.upstream import KEY, RETRY_AFTER, answer, attempts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StackFactory
    from tests.e2e.stacks import LocalStack
    from tests.e2e.upstream import Attempt

ROOT = Path(__file__).parents[2]
MAX_ATTEMPTS = 4


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the upstream records its requests."""
    return tmp_path_factory.mktemp("upstream")


@pytest.fixture(scope="module")
def upstream(records: Path) -> Iterator[str]:
    """The upstream's URL."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.upstream", str(records)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    server.kill()
    server.wait()
    server.stdout.close()


@pytest.fixture(scope="module")
def upstream_stack(make_stack: StackFactory, upstream: str) -> LocalStack:
    """A stack whose engine is the upstream."""
    return make_stack(
        {
            "LOWTIDE_ENGINE": "openai",
            "LOWTIDE_ENGINE_URL": f"{upstream}/v1",
            "LOWTIDE_ENGINE_API_KEY": KEY,
            "LOWTIDE_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
            "LOWTIDE_RETRY_BASE": "0.1",
            "LOWTIDE_WORKER_POLL_CAP": "0.5",
        }
    )


def line(custom_id: str, body: bytes) -> bytes:
    """Return a line of a batch file around any bytes as body."""
    head = f'{{"custom_id":"{custom_id}","method":"POST","url":"/v1/chat/completions","body":'
    return head.encode() + body + b"}\n"


def run(stack: LocalStack, bodies: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Run a batch of these bodies; return the raw output and error lines by custom_id."""
    source = b"".join(line(custom_id, body) for custom_id, body in bodies.items())
    batch = stack.submit(stack.upload(source))
    final = stack.follow(batch)[-1]
    output, errors = (stack.content(final[f"{role}_file_id"]) for role in ("output", "error"))
    oracle.check(final, source, output, errors, answers=lambda *_: None)
    both = (
        {outcome.custom_id: outcome.raw for outcome in oracle.outcomes(data)}
        for data in (output, errors)
    )
    return next(both), next(both)


def response_bytes(raw: bytes) -> bytes:
    """Return the raw body in a line of an output or error file."""
    start, end = raw.index(b',"body":') + len(b',"body":'), raw.rindex(b'},"error":null}')
    return raw[start:end]


def attempts_by_id(records: Path, bodies: dict[str, bytes]) -> dict[str, list[Attempt]]:
    """Return the attempts by custom_id, matched by equal body bytes."""
    recorded = attempts(records)
    return {
        custom_id: [attempt for attempt in recorded if attempt.body == body]
        for custom_id, body in bodies.items()
    }


BODIES = {
    "plain": b'{"model":"m","messages":[{"role":"user","content":"plain"}]}',
    "spaces": b'{ "model" :\t"m" , "messages":[ ] ,  "note":"spaces"  }',
    "order": b'{"z":1,"model":"m","a":2,"messages":[]}',
    "escapes": b'{"model":"m","messages":[],"note":"\\u00e9\\u0041\\ud83d\\ude00\\/\\b"}',
    "not escaped": '{"model":"m","messages":[],"note":"é😀\u2028\x7f"}'.encode(),
    "big": b'{"model":"m","messages":[],"n":123456789012345678901234567890123456789}',
    "float": b'{"model":"m","messages":[],"n":[1.0,1,1e0,-0.0,1E+2,0.1000,1e-400]}',
    "twice": b'{"model":"m","messages":[],"k":1,"k":2}',
    "model twice": b'{"model":"x","model":"m","messages":[]}',
    "inner line": b'{"model":"m","messages":[],"note":"},\\"error\\":null}\\n{"}',
    "deep": b'{"model":"m","messages":[],"d":' + b"[" * 100 + b"]" * 100 + b"}",
    "long": b'{"model":"m","messages":[],"note":"' + b"tide " * 50_000 + b'"}',
}


def test_bodies_pass_through_unchanged(upstream_stack: LocalStack, records: Path) -> None:
    output, errors = run(upstream_stack, BODIES)
    assert not errors
    for custom_id, sent in attempts_by_id(records, BODIES).items():
        assert [attempt.path for attempt in sent] == ["/v1/chat/completions"], custom_id
        # Only U+2028 changes: a line separator is written as its escape.
        expected = answer(BODIES[custom_id]).replace("\u2028".encode(), b"\\u2028")
        assert response_bytes(output[custom_id]) == expected, custom_id


@pytest.mark.skipif(not GSM8K.exists(), reason="the GSM8K batch file is missing")
def test_gsm8k_passes_through_unchanged(upstream_stack: LocalStack, records: Path) -> None:
    bodies = {}
    for request in oracle.input_lines(GSM8K.read_bytes()):
        start = request.raw.index(b'"body":') + len(b'"body":')
        bodies[request.custom_id] = request.raw[start:-1].strip()
    assert len(bodies) == 1319
    output, errors = run(upstream_stack, bodies)
    assert (len(output), len(errors)) == (1319, 0)
    for custom_id, body in bodies.items():
        assert response_bytes(output[custom_id]) == answer(body)
    arrived = Counter(attempt.body for attempt in attempts(records))
    assert all(arrived[body] == times for body, times in Counter(bodies.values()).items())


def scripted(name: str, *statuses: int) -> bytes:
    """Return a body whose successive attempts get these statuses."""
    return f'{{"model":"m","messages":[],"note":"{name}","x_statuses":{list(statuses)}}}'.encode()


def test_only_transient_errors_are_retried(upstream_stack: LocalStack, records: Path) -> None:
    bodies = {
        "fine": scripted("fine", 200),
        "busy": scripted("busy", 429, 429, 200),
        "broken twice": scripted("broken twice", 500, 503, 200),
        "never": scripted("never", 500),
        "refused": scripted("refused", 400),
        "not there": scripted("not there", 404),
    }
    output, errors = run(upstream_stack, bodies)
    assert list(output) == ["fine", "busy", "broken twice"]
    assert list(errors) == ["never", "refused", "not there"]
    for custom_id, raw in output.items():
        assert response_bytes(raw) == answer(bodies[custom_id])
    for custom_id, status in (("never", 500), ("refused", 400), ("not there", 404)):
        assert response_bytes(errors[custom_id]) == answer(bodies[custom_id], status)
        assert f'"status_code":{status},'.encode() in errors[custom_id]

    sent = attempts_by_id(records, bodies)
    assert {custom_id: len(each) for custom_id, each in sent.items()} == {
        "fine": 1,
        "busy": 3,
        "broken twice": 3,
        "never": MAX_ATTEMPTS,
        "refused": 1,
        "not there": 1,
    }
    for before, after in pairwise(sent["busy"]):
        assert after.at - before.at >= RETRY_AFTER
