"""`lowtide submit` of large files, in parts that survive interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner
from werkzeug.serving import make_server

from lowtide.cli import client, uploads
from lowtide.cli.main import app
from tests.conftest import API_KEY
from tests.e2e.command import clean_environment
from tests.e2e.waiting import until
from tests.http.conftest import MAX_FILE_BYTES, _function
from tests.http.forms import line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.http.conftest import Api
    from tests.worlds import World

PART_BYTES = 8_000
LINES = [line(f"{number}", input="x" * 1_900) for number in range(40)]
CONTENT = b"".join(LINES)
PARTS = -(-len(CONTENT) // PART_BYTES)
PARALLEL = 4
# The sizes are small, so that a file has several parts.
PROGRAM = f"""
from lowtide.cli import client, uploads
uploads.PART_BYTES = {PART_BYTES}
client.LARGE = {PART_BYTES}
%s
from lowtide.cli.main import app
app()
"""


@dataclass
class Front:
    """The API behind an HTTP server, which can hold or fail parts."""

    api: Api
    url: str = ""
    calls: list[str] = field(default_factory=list)
    before_part: Callable[[int], int] = lambda _: 200
    parts: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.calls.append(f"{method} {path}")
        if path.endswith("/parts"):
            with self.lock:
                self.parts += 1
                number = self.parts
            status = self.before_part(number)
            if status != 200:
                environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
                start_response(f"{status} Failed", [("Content-Type", "application/json")])
                return [b'{"error": {"message": "It failed."}}']
        application = self.api.clients[_function(method, path)].application
        answer: Iterable[bytes] = application(environ, start_response)
        return answer


@pytest.fixture
def front(api: Api) -> Iterator[Front]:
    front = Front(api)
    server = make_server("127.0.0.1", 0, front, threaded=True)
    front.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield front
    server.shutdown()
    thread.join()


@dataclass
class Command:
    """`lowtide submit` of one file."""

    front: Front
    file: Path
    state: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the command."""
        return {
            "OPENAI_BASE_URL": self.front.url,
            "OPENAI_API_KEY": API_KEY,
            "XDG_STATE_HOME": os.fspath(self.state),
        }

    def start(self, patch: str = "") -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM % patch, "submit", os.fspath(self.file)],
            env=clean_environment(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str, fails: bool = False) -> tuple[str, str]:
        """Run it in this process to its end; return its stdout and stderr."""
        arguments = ["submit", os.fspath(self.file), *options]
        result = CliRunner().invoke(app, arguments, env=self.environment)
        assert result.exit_code == int(fails), (result.exception, result.output)
        return result.stdout.strip(), result.stderr.strip()

    def interrupt(self, number: int) -> str:
        """Send a signal after one part of each sender; return stderr."""
        held: list[int] = []
        released = threading.Event()

        def hold(part: int) -> int:
            if part > PARALLEL:
                held.append(part)
                released.wait(60)
                return 500
            return 200

        self.front.before_part = hold
        process = self.start()
        until(lambda: len(held) == PARALLEL, "all senders have sent a part")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        released.set()
        self.front.before_part = lambda _: 200
        return err

    def remembered(self) -> list[Path]:
        """Return the files in the state folder."""
        return [path for path in self.state.rglob("*") if path.is_file()]


@pytest.fixture
def command(front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(uploads, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(client, "LARGE", PART_BYTES)
    file = tmp_path / "in.jsonl"
    file.write_bytes(CONTENT)
    return Command(front, file, tmp_path / "state")


def counts(world: World) -> list[tuple[Any, ...]]:
    """Return the status, parts and bytes of all uploads, the oldest first."""
    rows = world.rows("SELECT status, part_count, part_bytes FROM uploads ORDER BY id")
    return [tuple(row) for row in rows]


WHOLE = ("completed", PARTS, len(CONTENT))
HALF = ("pending", PARALLEL, PARALLEL * PART_BYTES)


def content_of(api: Api, batch: str) -> bytes:
    """Return the input of a batch."""
    file = api("GET", f"/v1/batches/{batch}").json["input_file_id"]
    content: bytes = api("GET", f"/v1/files/{file}/content").data
    return content


def test_large_file_is_sent_in_parts(command: Command, api: Api, world: World) -> None:
    out, err = command.run("--json", "--user", "ada")
    batch = json.loads(out)
    assert (batch["metadata"], err) == ({"user": "ada"}, "")
    assert content_of(api, batch["id"]) == CONTENT
    assert counts(world) == [WHOLE]
    assert command.remembered() == []


def test_small_file_is_sent_whole(command: Command, api: Api) -> None:
    command.file.write_bytes(LINES[0])
    out, _ = command.run()
    assert command.front.calls == ["POST /v1/files", "POST /v1/batches"]
    assert content_of(api, out) == LINES[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_upload_sends_only_what_is_missing(
    command: Command, api: Api, world: World, number: int
) -> None:
    err = command.interrupt(number)
    assert counts(world) == [HALF]
    assert ("Run the same command again before" in err) == (number == signal.SIGINT)
    command.front.calls.clear()
    out, err = command.run("--json")
    assert "Resuming: " in err
    assert counts(world) == [WHOLE]
    assert sum(call.endswith("/parts") for call in command.front.calls) == PARTS - PARALLEL
    assert content_of(api, json.loads(out)["id"]) == CONTENT
    assert command.remembered() == []


def test_failing_parts_are_sent_again(command: Command, api: Api, world: World) -> None:
    statuses = {2: 503, 3: 429, 5: 500}
    command.front.before_part = lambda number: statuses.get(number, 200)
    out, _ = command.run()
    assert counts(world) == [WHOLE]
    assert command.front.parts == PARTS + len(statuses)
    assert content_of(api, out) == CONTENT


def test_upload_that_ended_meanwhile_starts_again(command: Command, api: Api, world: World) -> None:
    command.interrupt(signal.SIGKILL)
    (upload,) = [call.split("/")[3] for call in command.front.calls if "/parts" in call][:1]
    api("POST", f"/v1/uploads/{upload}/cancel")
    out, err = command.run()
    assert "starting again" in err
    assert counts(world) == [("cancelled", *HALF[1:]), WHOLE]
    assert content_of(api, out) == CONTENT


def test_upload_that_expired_meanwhile_starts_again(
    command: Command, api: Api, world: World
) -> None:
    command.interrupt(signal.SIGKILL)
    (path,) = command.remembered()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"expires_at": 1}))
    out, err = command.run()
    assert "has expired: starting again" in err
    assert counts(world) == [HALF, WHOLE]
    assert content_of(api, out) == CONTENT


def test_changed_file_starts_again(command: Command, api: Api, world: World) -> None:
    command.interrupt(signal.SIGKILL)
    changed = CONTENT.replace(b"x", b"y")
    command.file.write_bytes(changed)
    out, err = command.run()
    assert err == ""
    assert counts(world) == [HALF, WHOLE]
    assert content_of(api, out) == changed


def test_file_that_changes_during_its_upload_is_refused(command: Command, world: World) -> None:
    def change(number: int) -> int:
        if number == PARTS:
            command.file.write_bytes(CONTENT.replace(b"x", b"y"))
        return 200

    command.front.before_part = change
    _, err = command.run(fails=True)
    assert "was changed during its upload" in err
    assert [row[0] for row in counts(world)] == ["pending"]
    assert command.remembered() == []


@pytest.mark.parametrize("change", [partial(os.truncate, length=1), os.unlink])
def test_file_that_loses_bytes_during_its_upload_is_refused(
    command: Command, world: World, change: Callable[[Path], None]
) -> None:
    def lose(number: int) -> int:
        if number == PARALLEL:
            change(command.file)
        return 200

    command.front.before_part = lose
    _, err = command.run(fails=True)
    assert "was changed during its upload" in err
    assert [row[0] for row in counts(world)] == ["pending"]
    assert command.remembered() == []


def test_upload_that_cannot_succeed_says_why(command: Command, world: World) -> None:
    command.file.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    out, err = command.run("--json", fails=True)
    assert out == ""
    assert f"A file may have {MAX_FILE_BYTES} bytes" in err
    assert counts(world) == []


def test_part_that_is_refused_says_why(command: Command) -> None:
    command.front.before_part = lambda _: 413
    _, err = command.run(fails=True)
    assert err.endswith("It failed.")
    assert command.front.parts <= PARALLEL


def test_refused_batch_does_not_send_the_file_again(
    command: Command, api: Api, world: World
) -> None:
    _, err = command.run("--window", "never", fails=True)
    assert "never" in err
    out, _ = command.run("--window", "2h")
    assert counts(world) == [WHOLE]
    assert command.front.parts == PARTS
    assert content_of(api, out) == CONTENT


def test_submit_that_was_killed_after_its_batch_finds_it(command: Command, world: World) -> None:
    kill = "import os; uploads.LargeUpload.forget = lambda _: os.kill(os.getpid(), 9)"
    process = command.start(patch=kill)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(command.remembered()) == 1
    out, _ = command.run()
    (row,) = world.rows("SELECT id FROM batches")
    assert out == f"batch_{row.id.hex}"
    again, _ = command.run()
    assert again != out, "a file may be submitted twice"
