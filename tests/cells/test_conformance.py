"""The API's whole conformance suite, through a front over three cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_conformance_suite_passes_through_the_front(tmp_path: Path) -> None:
    """The async client sends what the sync one sends: one of them is enough here."""
    # Those of the outer run would clear the outer run's folder.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    run = subprocess.run(
        (
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--basetemp", str(tmp_path / "inner")),
            *("--cells", "3", "-k", "not async", "tests/conformance"),
        ),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20_000:]
