"""Options before the command, and errors that say what to set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lowtide import __version__
from lowtide.local import files

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

FILE = "examples/questions.jsonl"


def test_version_is_printed(lowtide: Command) -> None:
    assert lowtide("--version").stdout == f"lowtide {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--json", "validate", FILE),
        ("validate", FILE, "--json"),
        ("--json", "validate", FILE, "--json"),
    ],
)
def test_json_is_accepted_on_both_sides(lowtide: Command, arguments: tuple[str, ...]) -> None:
    assert json.loads(lowtide(*arguments).stdout)["valid"] is True


def test_option_after_command_beats_option_before_it(lowtide: Command, tmp_path: Path) -> None:
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    assert before in lowtide("--data-dir", before, "status", exit_code=1).stderr
    error = lowtide("--data-dir", before, "status", "--data-dir", after, exit_code=1).stderr
    assert after in error
    assert before not in error


def test_option_beats_environment(
    lowtide: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "environment"))
    option = str(tmp_path / "option")
    for arguments in (("--data-dir", option, "status"), ("status", "--data-dir", option)):
        assert option in lowtide(*arguments, exit_code=1).stderr
    assert str(tmp_path / "environment") in lowtide("status", exit_code=1).stderr


@pytest.mark.parametrize(
    ("command", "fix"),
    [
        (("status",), "lowtide up"),
        (("batches", "list"), "--url (OPENAI_BASE_URL) and --key (OPENAI_API_KEY)"),
        (("tenants", "list"), "LOWTIDE_DATABASE_URL"),
        (("batches", "list", "--all-tenants"), "LOWTIDE_DATABASE_URL"),
    ],
)
def test_missing_stack_says_what_was_looked_for(
    lowtide: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    fix: str,
) -> None:
    monkeypatch.delenv("LOWTIDE_DATABASE_URL")
    missing = tmp_path / "missing"
    error = lowtide(*command, "--data-dir", str(missing), exit_code=1).stderr
    assert f"there is no directory {missing}" in error
    assert fix in error
    empty = lowtide(*command, "--data-dir", str(tmp_path), exit_code=1).stderr
    assert f"{tmp_path} has no state.json" in empty


def test_stopped_stack_is_told_from_none(lowtide: Command, tmp_path: Path) -> None:
    state = {
        "base_url": "", "portal_url": "", "data_dir": str(tmp_path), "pid": 1, "created": 0.0,
        "ready": True, "processes": [],
    }  # fmt: skip
    (tmp_path / "state.json").write_text(json.dumps(state))
    files.read_or_create(tmp_path)
    error = lowtide("status", "--data-dir", str(tmp_path), exit_code=1).stderr
    assert f"the processes of {tmp_path} have ended" in error


def test_missing_key_is_named(lowtide: Command) -> None:
    error = lowtide("--url", "http://127.0.0.1:1/v1", "batches", "list", exit_code=1).stderr
    assert error.strip() == (
        "No API key for http://127.0.0.1:1/v1: set --key (OPENAI_API_KEY), or leave out --url."
    )


def test_unreachable_server_is_named(lowtide: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowtide.cli.client._RETRIES", 0)
    server = ("--url", "http://127.0.0.1:1", "--key", "lt_x")
    error = lowtide(*server, "batches", "list", exit_code=1).stderr
    assert error.startswith("Cannot connect to http://127.0.0.1:1/")
