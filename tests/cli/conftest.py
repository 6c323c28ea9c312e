"""Commands of operators, on a database of their own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from lowtide.cli.main import app
from lowtide.settings import PREFIX
from tests.conftest import PEPPER

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from tests.conftest import Database

_OTHERS = (PREFIX, "K_SINK", "DATA_DIR", "OPENAI_")


@dataclass(frozen=True)
class Command:
    """Runs `lowtide` in this process, not on a terminal."""

    objects: str

    def __call__(self, *arguments: str, exit_code: int = 0, stdin: str | None = None) -> Result:
        environment = {"COLUMNS": "200", "NO_COLOR": "1"}
        result = CliRunner().invoke(app, arguments, input=stdin, env=environment)
        assert result.exit_code == exit_code, result.output
        return result

    def json(self, *arguments: str) -> Any:
        """Return the JSON that a command prints."""
        return json.loads(self(*arguments, "--json").stdout)

    def table(self, *arguments: str) -> list[dict[str, str]]:
        """Return the rows of a table."""
        header, *rows = self(*arguments).stdout.splitlines()
        return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


@pytest.fixture
def lowtide(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command of an operator: the database and an object store are set."""
    for name in [name for name in os.environ if name.startswith(_OTHERS)]:
        monkeypatch.delenv(name)
    objects = f"file://{tmp_path}"
    monkeypatch.setenv("LOWTIDE_DATABASE_URL", database.url("operator"))
    monkeypatch.setenv("LOWTIDE_API_KEY_PEPPER", PEPPER)
    monkeypatch.setenv("LOWTIDE_OBJECT_STORE_URL", objects)
    return Command(objects)
