"""Operators watch, download and show what belongs to any tenant."""

from __future__ import annotations

import json
from getpass import getuser
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from openai.types import Batch
from sqlalchemy import text

from lowtide.cli import client
from lowtide.core.errors import Unavailable
from lowtide.core.ids import format_batch_id, format_request_id
from tests.cli.test_operator_batches import Tenants
from tests.dead_letters.letters import custom_ids, source_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lowtide.core.ids import BatchId
    from tests.cli.conftest import Command
    from tests.conftest import Database

NOT_HERE = "not in the object store of this command"


@pytest.fixture
def tenants(database: Database, lowtide: Command) -> Tenants:
    """Two tenants without batches."""
    return Tenants(database, lowtide.objects)


@pytest.fixture
def ended(tenants: Tenants) -> BatchId:
    """A batch of acme whose requests 2 and 3 are dead letters."""
    return tenants.ended(tenants.acme)


def _on_first_wait(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> list[float]:
    """Run `action` when a command waits between two polls; return the waits."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            action()

    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=sleep))
    return waits


@pytest.mark.parametrize("options", [("--tenant", "acme"), ("--all-tenants",)])
def test_batch_is_watched_until_it_ends(
    lowtide: Command,
    tenants: Tenants,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    batch = tenants.running(tenants.acme)
    waits = _on_first_wait(monkeypatch, lambda: tenants.end(batch))
    name = format_batch_id(batch)
    shown = lowtide("watch", name, *options).stdout
    assert shown.splitlines()[:2] == [
        "in_progress: 0/3 waiting for workers",
        "completed: 3/3 2 failed",
    ]
    assert len(waits) == 1
    again = lowtide.json("watch", name, *options)
    assert (again["tenant"], again["summary"]["outcomes"]["failed"]) == ("acme", 2)


def test_watch_outlives_an_outage_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    running, final = (
        Batch.construct(id="batch_1", status=status) for status in ("in_progress", "completed")
    )
    answers: list[Batch | Unavailable] = [final, Unavailable("The database is not responding.")]

    def read() -> Batch:
        answer = answers.pop()
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    waits = _on_first_wait(monkeypatch, lambda: None)
    shown: list[str] = []
    assert client.follow(read, running, lambda batch: shown.append(batch.status)) is final
    assert shown == ["in_progress", "in_progress", "completed"]
    assert len(waits) == 2


@pytest.mark.parametrize("options", [("--tenant", "acme"), ("--all-tenants",)])
def test_files_of_batch_are_downloaded(
    lowtide: Command,
    tenants: Tenants,
    ended: BatchId,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    name, contents = format_batch_id(ended), {}
    for what in ("input", "output", "errors", "failed-inputs"):
        out = tmp_path / what
        report = lowtide.json("download", name, "--what", what, "--out", str(out), *options)
        contents[what] = out.read_bytes()
        lines = contents[what].count(b"\n")
        assert report == {
            "file": str(out), "what": what, "lines": lines, "bytes": len(contents[what]),
        }  # fmt: skip
    assert contents.pop("input") == b"\n".join(source_lines(3))
    assert {what: custom_ids(content) for what, content in contents.items()} == {
        "output": ["1"],
        "errors": ["2", "3"],
        "failed-inputs": ["2", "3"],
    }
    assert {(getuser(), "files.download"), (getuser(), "batches.download")} <= tenants.actors()


def test_download_selects_outcomes(lowtide: Command, ended: BatchId, tmp_path: Path) -> None:
    out = tmp_path / "expired"
    what = ("--what", "failed-inputs", "--outcome", "expired", "--out", str(out))
    lowtide("download", format_batch_id(ended), *what, "--tenant", "acme")
    assert out.read_bytes() == b""


def test_download_says_which_file_is_missing(lowtide: Command, tenants: Tenants) -> None:
    name = format_batch_id(tenants.running(tenants.acme))
    error = lowtide("download", name, "--tenant", "acme", exit_code=1).stderr
    assert f"{name} is in_progress and has no output file." in error


def test_dead_letter_is_shown(lowtide: Command, ended: BatchId) -> None:
    name = format_request_id(ended, 2)
    letters = [
        lowtide.json("dead-letters", "show", name, *options)
        for options in (("--tenant", "acme"), ("--all-tenants",))
    ]
    assert letters[0] == letters[1]
    assert (letters[0]["id"], letters[0]["tenant"]) == (name, "acme")
    assert letters[0]["input"] == json.loads(source_lines(2)[1])
    assert letters[0]["response"]["body"] == {"error": {"message": "No", "n": 1.5}}


def test_dead_letters_of_tenant_are_downloaded(
    lowtide: Command, tenants: Tenants, ended: BatchId, tmp_path: Path
) -> None:
    tenants.ended(tenants.world.tenant("globex"))
    out = tmp_path / "out"
    for which in ("input", "output"):
        report = lowtide.json(
            "dead-letters", "download", "--which", which, "--out", str(out), "--tenant", "acme"
        )
        assert report["lines"] == 2
        assert custom_ids(out.read_bytes()) == ["2", "3"]
    assert format_batch_id(ended)[6:] in json.loads(out.read_bytes().splitlines()[0])["id"]
    assert (getuser(), "dead_letters.download") in tenants.actors()


def test_usage_of_tenant_is_shown(lowtide: Command, tenants: Tenants, ended: BatchId) -> None:
    assert ended
    lowtide("tenants", "set", "acme", "--active-batches", "3")
    tenants.running(tenants.acme)
    (facts,) = lowtide.table("usage", "--tenant", "acme")
    assert (facts["tenant"], facts["active batches"]) == ("acme", "1 of 3")
    assert facts["this month"].startswith("3 requests since ")
    assert facts["this month"].endswith("-01 00:00:00 UTC")
    assert lowtide.json("usage", "--tenant", "default")["active_batches"]["used"] == 0


@pytest.mark.parametrize(
    "command", [("watch",), ("download",), ("download", "--what", "failed-inputs")]
)
def test_tenant_option_protects_batches_of_others(
    lowtide: Command, ended: BatchId, tmp_path: Path, command: tuple[str, ...]
) -> None:
    name = format_batch_id(ended)
    out = ("--out", str(tmp_path / "out")) if "download" in command else ()
    error = lowtide(*command, name, *out, "--tenant", "default", exit_code=1).stderr
    assert f"{name} is not a batch of 'default'" in error
    assert not (tmp_path / "out").exists()


def test_tenant_option_protects_dead_letters_of_others(lowtide: Command, ended: BatchId) -> None:
    command = ("dead-letters", "show", format_request_id(ended, 2))
    error = lowtide(*command, "--tenant", "default", exit_code=1).stderr
    assert f"{format_batch_id(ended)} is not a batch of 'default'" in error


@pytest.mark.parametrize("what", ["output", "failed-inputs"])
def test_another_object_store_is_reported(
    lowtide: Command,
    ended: BatchId,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    out = tmp_path / "out"
    command = ("download", format_batch_id(ended), "--what", what, "--out", str(out))

    def error(url: str) -> str:
        monkeypatch.setenv("LOWTIDE_OBJECT_STORE_URL", url)
        return lowtide(*command, "--tenant", "acme", exit_code=1).stderr

    assert NOT_HERE in error(f"file://{tmp_path}/other")
    assert "LOWTIDE_OBJECT_STORE_URL is not set" in error("")
    (tmp_path / "file").touch()
    blocked = f"file://{tmp_path}/file/folder"
    assert f"The object store {blocked!r} cannot be opened" in error(blocked)
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing/out", "No such file or directory"),
        ("file/out", "Not a directory"),
        ("x" * 252, "File name too long"),
    ],
)
def test_unwritable_target_is_reported_and_no_download_is_recorded(
    database: Database, lowtide: Command, ended: BatchId, tmp_path: Path, name: str, problem: str
) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / name)
    command = ("download", format_batch_id(ended), "--out", out, "--tenant", "acme")
    assert f"{out} cannot be written: {problem}" in lowtide(*command, exit_code=1).stderr
    with database.engine("operator").connect() as connection:
        downloads = text("SELECT count(*) FROM audit_log WHERE action = 'files.download'")
        assert connection.execute(downloads).scalar_one() == 0
