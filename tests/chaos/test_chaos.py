"""A short chaos run with one seed, in which every invariant must hold."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.chaos.control import ROOT

pytestmark = pytest.mark.slow

SEED = 11
FAULTS = 60
# With a base of 8 s, the five attempts of a poison request take over two minutes. 2 s still spread
# them over half a minute, longer than any fault that could be blamed on a healthy engine.
SETTING = "LOWTIDE_RETRY_BASE=2"


@pytest.mark.timeout(1200)
def test_short_run_breaks_no_invariant() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(SEED), "--faults", str(FAULTS)]
    done = subprocess.run(
        [*command, "--gap", "0.8", "--setting", SETTING, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout.splitlines()[-1 if done.returncode == 0 else -2])
    assert report["violations"] == [], done.stdout
    assert report["innocent"] == 0, done.stdout
    assert sum(report["injected"].values()) >= FAULTS * 0.9, report["missed"]
