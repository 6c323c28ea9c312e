"""The command `lowtide find`."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from lowtide.cli.main import app
from lowtide.core.ids import format_batch_id, format_request_id
from tests.search.test_search import batch_of
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer.testing import Result

    from tests.cli.conftest import Command
    from tests.conftest import Database

BATCH = {"id": "batch_1", "user": "[red]ana", "status": "completed", "created_at": 1}
PAGE = {
    "data": [
        {"kind": "batch", "id": "batch_1", "field": "user", "value": "[red]ana", "batch": BATCH},
        {"kind": "file", "id": "file-2", "field": "id", "value": "file-2", "batch": None},
    ],
    "more": ["request"],
}


@pytest.fixture(autouse=True)
def _operator(lowtide: Command) -> None:
    """Every test runs as an operator."""


def _run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server's URL, and the texts that it was asked to search for."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            assert url.path == "/v1/search"
            texts.extend(parse_qs(url.query)["q"])
            body = json.dumps(PAGE if texts[-1] != "nothing" else {"data": [], "more": []})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", texts
    server.shutdown()
    server.server_close()
    thread.join()


def test_tenant_searches_over_http(server: tuple[str, list[str]]) -> None:
    url, texts = server
    output = _run("find", "a b&c", "--url", url, "--key", "k").output
    assert texts == ["a b&c"]
    for shown in ("batch_1", "[red]ana", "completed", "file-2", "More matches of kind request"):
        assert shown in output
    page = _run("find", "x y", "--url", url, "--key", "k", "--json").stdout
    assert json.loads(page) == PAGE
    header = "id\tfield\tvalue\tbatch\tuser\tstatus\n"
    assert _run("find", "nothing", "--url", url, "--key", "k").stdout == header


def test_operator_searches_one_tenant_or_all(database: Database) -> None:
    world = World(database)
    acme = world.tenant("acme")
    batches = {name: batch_of(world, "doc-1", tenant=tenant, user="ana")
               for name, tenant in (("acme", acme), ("other", world.tenant("other")))}  # fmt: skip

    def find(*arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(_run("find", "doc-1", *arguments, "--json").stdout)
        return {match["id"]: match["tenant"] for match in found["data"]}

    ids = {format_request_id(batch, 1): name for name, batch in batches.items()}
    assert find("--all-tenants") == ids
    assert find("--tenant", "acme") == {format_request_id(batches["acme"], 1): "acme"}
    output = _run("find", "ana", "--all-tenants").stdout
    for name, batch in batches.items():
        assert any(format_batch_id(batch) in row and name in row for row in output.splitlines())


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("ab", "--tenant", "nobody"), 1, "Tenant 'nobody' not found"),
        (("ab", "--tenant", "x", "--all-tenants"), 1, "either --tenant or --all-tenants"),
        (("a", "--all-tenants"), 1, "2 to 512 characters"),
    ],
)
def test_invalid_search_is_reported(
    arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    assert message in _run("find", *arguments, exit_code=exit_code).output
