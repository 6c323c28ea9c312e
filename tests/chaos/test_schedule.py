"""Schedules of chaos runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import schedule
from tests.chaos.schedule import KINDS, kind_of, make

ROOT = Path(__file__).resolve().parents[2]


def test_seed_gives_same_schedule_in_every_process(tmp_path: Path) -> None:
    written = tmp_path / "schedule.jsonl"
    command = [sys.executable, "-m", "tests.chaos", "--seed", "7", "--faults", "120", "--dry-run"]
    done = subprocess.run(
        [*command, "--schedule", str(written)],
        cwd=ROOT,
        env={"PATH": "", "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "seed 7, 120 faults" in done.stdout
    root = "faults that fill a disk are left out" not in done.stdout
    assert [json.loads(line) for line in written.read_text().splitlines()] == [
        fault.to_dict() for fault in make(7, 120, root=root)
    ]


def test_other_seed_gives_other_schedule() -> None:
    assert make(1, 50) != make(2, 50)


def test_every_kind_occurs_before_any_repeats() -> None:
    faults = make(3, len(KINDS))
    assert {fault.kind for fault in faults} == {kind.name for kind in KINDS}


def test_faults_stay_within_limits_of_their_kind() -> None:
    faults = make(4, 2000)
    assert [fault.number for fault in faults] == list(range(1, 2001))
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    for fault in faults:
        kind = kind_of(fault)
        assert fault.target in kind.targets
        assert kind.seconds[0] <= fault.seconds <= kind.seconds[1]
    assert faults[-1].at == pytest.approx(2000 * schedule.GAP, rel=0.1)


def test_disks_are_not_filled_without_root() -> None:
    assert not any(fault.kind == "disk.full" for fault in make(5, 500, root=False))


def test_only_selects_kinds_by_prefix() -> None:
    assert {kind_of(fault).area for fault in make(6, 100, only=["net", "engine"])} == {
        "net",
        "engine",
    }
    with pytest.raises(ValueError, match="No kind of fault begins with tide"):
        make(6, 100, only=["tide"])
