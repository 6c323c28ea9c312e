"""A short run of chaos among cells with one seed, in which every invariant must hold."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.chaos.control import ROOT

pytestmark = pytest.mark.slow

SEED = 5
FAULTS = 5


@pytest.mark.timeout(1200)
def test_short_run_breaks_no_invariant() -> None:
    command = [sys.executable, "-m", "tests.chaos.cells"]
    done = subprocess.run(
        [*command, "--seed", str(SEED), "--faults", str(FAULTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["violations"] == [], done.stderr
    assert sum(report["injected"].values()) == FAULTS
    assert report["accepted"] > 0
