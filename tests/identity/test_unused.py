"""What identity providers cost a function that has none."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.command import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import sys
from lowtide.app import App
from lowtide.settings import read_settings
from lowtide import routes
routes.application(App(read_settings()), routes.READ)
print(*sorted({"jwt", "authlib", "joserfc", "lowtide.identity.tokens"} & set(sys.modules)))
"""
FILE = "issuers: [{issuer: https://login.example.com, audience: lowtide}]"


@pytest.mark.parametrize(
    ("file", "imported"), [("", ""), (FILE, "jwt lowtide.identity.tokens")], ids=["none", "one"]
)
def test_libraries_are_imported_for_providers_alone(
    tmp_path_factory: pytest.TempPathFactory, file: str, imported: str
) -> None:
    answer = load(tmp_path_factory.mktemp("identity"), file)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == imported


def test_broken_file_stops_a_function_at_its_start(tmp_path: Path) -> None:
    answer = load(tmp_path, FILE.replace("https", "ftp"))
    assert answer.returncode == 1
    assert "identity.yaml:1: issuer 1: issuer: must start with https://" in answer.stderr


def load(folder: Path, file: str) -> subprocess.CompletedProcess[str]:
    """Load a function of the API in a process of its own, with this file of providers."""
    environment = {
        "LOWTIDE_DATABASE_URL": "postgresql://api:secret@127.0.0.1:9/lowtide",
        "LOWTIDE_API_KEY_PEPPER": "pepper",
    }
    if file:
        path = folder / "identity.yaml"
        path.write_text(file)
        environment["LOWTIDE_IDENTITY"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )
