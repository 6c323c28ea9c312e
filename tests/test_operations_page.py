"""docs/operations.md: its SQL runs as the operator, its links and settings exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

if TYPE_CHECKING:
    from tests.conftest import Database

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SQL = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("statement", SQL, ids=lambda sql: " ".join(sql.split())[:40])
def test_sql_is_read_only_and_runs_as_operator(database: Database, statement: str) -> None:
    with database.engine("operator").connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text(statement)).all()


def test_linked_sections_exist() -> None:
    headings = {
        heading.lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings


def test_settings_named_on_page_exist() -> None:
    from lowtide.settings import unknown_variables

    named = set(re.findall(r"\bLOWTIDE_[A-Z_]+[A-Z]\b", PAGE))
    assert named
    assert unknown_variables(dict.fromkeys(named, "")) == []
