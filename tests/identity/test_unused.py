"""What identity providers cost a function that has none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.e2e.command import clean_environment

PROGRAM = """
import sys
from lowtide.app import App
from lowtide.settings import read_settings
from lowtide import routes
app = App(read_settings())
app.callers
print(*sorted({"jwt", "authlib", "joserfc", "lowtide.identity.tokens"} & set(sys.modules)))
"""
FILE = "issuers: [{issuer: https://login.example.com, audience: lowtide}]"


@pytest.mark.parametrize(
    ("file", "imported"), [("", ""), (FILE, "jwt lowtide.identity.tokens")], ids=["none", "one"]
)
def test_libraries_are_imported_for_providers_alone(
    tmp_path_factory: pytest.TempPathFactory, file: str, imported: str
) -> None:
    environment = {
        "LOWTIDE_DATABASE_URL": "postgresql://api:secret@127.0.0.1:9/lowtide",
        "LOWTIDE_API_KEY_PEPPER": "pepper",
    }
    if file:
        path = tmp_path_factory.mktemp("identity") / "identity.yaml"
        path.write_text(file)
        environment["LOWTIDE_IDENTITY"] = str(path)
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == imported
