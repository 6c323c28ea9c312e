"""`.ci/run` with a `make` that only says what it was asked for: each target runs once, whatever fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
INSTALLED = ("curl", "chromium", "promtool", "amtool", "tini")
MAKE = """#!/bin/sh
echo "$1" >>"$CALLS"
[ "$FAILS" != "$1" ]
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], tuple[int, list[str]]]:
    """Run a copy of the script, where one target fails; return its status and what was made."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in INSTALLED:
        (programs / name).write_text("#!/bin/sh\n")
    (programs / "make").write_text(MAKE)
    for path in programs.iterdir():
        path.chmod(0o755)
    script = tmp_path / "checkout" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    calls = tmp_path / "calls"

    def start(fails: str) -> tuple[int, list[str]]:
        path = f"{programs}:{os.environ['PATH']}"
        environment = {"PATH": path, "CALLS": str(calls), "FAILS": fails}
        done = subprocess.run([script], env=environment, timeout=60, check=False)
        return done.returncode, calls.read_text().splitlines()

    return start


@pytest.mark.parametrize("fails", ["", "test", "test-slow"])
def test_every_target_runs_once_and_what_fails_fails_the_run(
    run: Callable[[str], tuple[int, list[str]]], fails: str
) -> None:
    assert run(fails) == (1 if fails else 0, ["check", "test", "test-slow"])


def test_a_failed_check_ends_it(run: Callable[[str], tuple[int, list[str]]]) -> None:
    status, made = run("check")
    assert status != 0
    assert made == ["check"]
