"""The figures of cold starts name what is wrong with another checkout."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bench.imports import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("folder", "cause"),
    [
        ("missing", "No such file or directory"),
        (".", "main.py that is expected to define function"),
    ],
    ids=["no folder", "a folder without functions"],
)
def test_checkout_that_cannot_be_measured_is_one_line(
    folder: str, cause: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.imports", "read", "--against", tmp_path / folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert cause in line
    assert str(tmp_path) in line
