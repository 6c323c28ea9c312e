"""A short chaos run: one seed, each kind of fault at least once, nothing broken for good."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.chaos.control import ROOT

pytestmark = pytest.mark.slow

SEED = 11
FAULTS = 60


@pytest.mark.timeout(1200)
def test_a_short_run_breaks_no_invariant() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(SEED), "--faults", str(FAULTS)]
    done = subprocess.run(
        [*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout.splitlines()[-1 if done.returncode == 0 else -2])
    assert report["violations"] == [], done.stdout
    assert report["innocent"] == 0, done.stdout
    assert sum(report["injected"].values()) >= FAULTS * 0.9, report["missed"]
