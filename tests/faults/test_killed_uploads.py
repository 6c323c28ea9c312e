"""The upload function is killed in the middle of a part, and of a completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from lowtide.files.index import index_key
from lowtide.objects.store import ObstoreObjects
from tests.conftest import API_KEY
from tests.e2e.waiting import until
from tests.faults.servers import AUTHORIZATION, serving
from tests.http.forms import CONTENT_TYPE, form, line, part
from tests.worlds import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Database
    from tests.faults.servers import Server
    from tests.worlds import World

MIB = 1 << 20
HEADERS = {"Authorization": f"Bearer {API_KEY}"}
# Long enough for a completion that can be caught.
LINES = [line(f"{number}", input="x" * 1_000_000) for number in range(96)]
CONTENT = b"".join(LINES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def server(shared_database: Database, world: World, folder: Path) -> Iterator[Server]:  # noqa: ARG001
    settings = {"LOWTIDE_DATABASE_URL": shared_database.url("api")}
    with serving("upload", folder, settings) as running:
        yield running


def kill_workers(server: Server) -> None:
    """SIGKILL the server's processes, which its master replaces."""
    workers = psutil.Process(server.pid).children()
    assert workers
    for worker in workers:
        worker.kill()


def call(server: Server, path: str, **arguments: Any) -> Any:
    """Make a call, again while the server restarts; return its JSON."""
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        try:
            answers.append(
                httpx.post(
                    f"{server.url}/v1/uploads{path}", timeout=60, trust_env=False, **arguments
                )
            )
        except httpx.TransportError:
            return False
        return True

    headers = arguments.pop("headers", {})
    arguments["headers"] = headers | HEADERS
    until(is_answered, f"{path} is answered", within=60)
    assert answers[0].status_code == 200, answers[0].text
    return answers[0].json()


def create(server: Server) -> str:
    body = {"bytes": len(CONTENT), "filename": "a", "mime_type": "b", "purpose": "batch"}
    return str(call(server, "", json=body)["id"])


def add(server: Server, upload: str, data: bytes) -> str:
    content = form(part("data", data, "upload"))
    headers = {"Content-Type": CONTENT_TYPE}
    return str(call(server, f"/{upload}/parts", content=content, headers=headers)["id"])


def halves(server: Server, upload: str) -> list[str]:
    """Send the content as two parts."""
    middle = len(CONTENT) // 2
    return [add(server, upload, half) for half in (CONTENT[:middle], CONTENT[middle:])]


def names(folder: Path) -> set[str]:
    """Return the first part of the paths of all files, and of their staging files."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {path.partition("/")[0] + ("#" if "#" in path else "") for path in paths}


def sweep(world: World, folder: Path) -> None:
    """Delete what a tick deletes hours later."""
    world.run("UPDATE orphan_objects SET due_at = now() - interval '1 second'")
    keys = world.ticks.orphans(200).keys
    ObstoreObjects(f"file://{folder}").delete(keys)
    world.ticks.forget_orphans(keys)
    assert world.rows("SELECT 1 FROM orphan_objects") == []


def check_file(world: World, folder: Path, completed: dict[str, Any]) -> None:
    """Assert that the file and its index are all that stays, with every byte."""
    assert completed["file"]["status"] == "processed"
    sweep(world, folder)
    key = f"files/{completed['file']['id'].removeprefix('file-')}"
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert paths == {key, index_key(key)}
    assert (folder / key).read_bytes() == CONTENT


def test_part_that_was_cut_by_kill_is_sent_again(
    server: Server, world: World, folder: Path
) -> None:
    upload = create(server)
    body = form(part("data", CONTENT[: 40 * MIB], "upload"))
    head = (
        f"POST /v1/uploads/{upload}/parts HTTP/1.1\r\nHost: x\r\n{AUTHORIZATION}"
        f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    client = server.connect(head, body[: 20 * MIB])
    until(lambda: names(folder) == {"parts#"}, "the part is being written")
    kill_workers(server)
    assert client.read() == b""
    ids = halves(server, upload)
    assert world.value("SELECT part_count FROM uploads") == 2
    completed = call(server, f"/{upload}/complete", json={"part_ids": ids})
    check_file(world, folder, completed)


def test_completion_that_was_cut_by_kill_is_repeated(
    server: Server, world: World, folder: Path
) -> None:
    upload = create(server)
    ids = halves(server, upload)
    url = f"{server.url}/v1/uploads/{upload}/complete"
    cut = Running(
        lambda: httpx.post(
            url, json={"part_ids": ids}, headers=HEADERS, timeout=60, trust_env=False
        )
    )
    until(lambda: "files#" in names(folder), "the file is being written", every=0.001)
    kill_workers(server)
    with pytest.raises(httpx.TransportError):
        cut.result()
    assert world.rows("SELECT 1 FROM files") == []
    completed = call(server, f"/{upload}/complete", json={"part_ids": ids})
    check_file(world, folder, completed)
