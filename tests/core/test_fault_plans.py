"""Fault plans of the simulated engine: grammar, targets, time windows."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from lowtide.core.fault_plans import Kind, PlannedFault, Worker, parse_faults

STARTED = 1_700_000_000.0


def parse_one(text: str) -> PlannedFault:
    [fault] = parse_faults(text)
    return fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("down", PlannedFault(Kind.DOWN)),
        ("down@60-75", PlannedFault(Kind.DOWN, start=60, end=75)),
        ("hang@5-", PlannedFault(Kind.HANG, start=5)),
        ("500:0.1", PlannedFault(Kind.STATUS, 500, share=0.1)),
        ("429=2@30-70", PlannedFault(Kind.STATUS, 429, 2.0, start=30, end=70)),
        ("slow=1.5:0.05", PlannedFault(Kind.SLOW, value=1.5, share=0.05)),
        ("down@0-15/60", PlannedFault(Kind.DOWN, end=15, period=60)),
        ("spot:garbage", PlannedFault(Kind.GARBAGE, who="spot")),
        ("1/4:500:0.5", PlannedFault(Kind.STATUS, 500, who="1/4", share=0.5)),
        ("infer-spot-*:huge=1000", PlannedFault(Kind.HUGE, value=1000, who="infer-spot-*")),
        ("*:poison:0.01", PlannedFault(Kind.POISON, share=0.01)),
    ],
)
def test_plan_is_parsed(text: str, fault: PlannedFault) -> None:
    assert parse_one(text) == fault
    assert parse_faults(f" {text} , {text},") == (fault, fault)


def test_empty_plan_has_no_faults() -> None:
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("down,broken", "broken is neither a status nor one of down, slow"),
        ("200", "'200': the status must be from 400 to 599"),
        ("down@75-60", "'down@75-60': the window ends before it starts"),
        ("down@0-70/60", "ends after its period"),
        ("500:2", "the share must be above 0"),
        ("500:0", "the share must be above 0"),
        ("down=5", "down takes no value"),
        ("hang:slow", "hang is a kind of fault, not a worker's name"),
        ("5/4:down", "5/4 is not a share of workers"),
        ("0/0:down", "0/0 is not a share of workers"),
        ("down@soon", "'down@soon' does not match [WHO:]KIND"),
        ("status", "status is neither"),
        ("slow=-1", "'slow=-1' does not match"),
    ],
)
def test_error_names_invalid_part(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_faults(text)


def test_documented_plans_are_valid() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "simulated-engine.md"
    rows = page.read_text(encoding="utf-8").partition("| to see | plan |")[2].splitlines()
    plans = [row.split("`")[1] for row in rows if row.startswith("| ") and "`" in row]
    assert len(plans) == 7
    assert all(map(parse_faults, plans))


@pytest.mark.parametrize(
    ("text", "offset", "wait"),
    [
        ("down", 0, 0),
        ("down@60-75", 0, 60),
        ("down@60-75", 60, 0),
        ("down@60-75", 74.5, 0),
        ("down@60-75", 75, math.inf),
        ("down@60-", 1e9, 0),
        (f"down@{STARTED + 10:.0f}-{STARTED + 20:.0f}", 4, 6),
        (f"down@{STARTED + 10:.0f}-{STARTED + 20:.0f}", 19, 0),
        (f"down@{STARTED + 10:.0f}-{STARTED + 20:.0f}", 20, math.inf),
    ],
)
def test_window_is_relative_to_start_or_absolute(text: str, offset: float, wait: float) -> None:
    assert parse_one(text).wait(STARTED + offset, STARTED) == wait


@pytest.mark.parametrize(("at", "wait"), [(0, 5), (4, 1), (5, 0), (9, 0), (10, 55), (59, 6)])
def test_period_follows_wall_clock(at: float, wait: float) -> None:
    assert parse_one("down@5-10/60").wait(6_000_000 + at, started=12.0) == wait


SPOT, DEDICATED = Worker("spot", "infer-spot-1"), Worker("dedicated", "infer-dedicated-2")


@pytest.mark.parametrize(
    ("target", "spot", "dedicated"),
    [
        ("*", True, True),
        ("spot", True, False),
        ("dedicated", False, True),
        ("infer-spot-1", True, False),
        ("infer-*", True, True),
        ("1/2", True, False),
        ("2/2", True, True),
    ],
)
def test_fault_applies_to_matching_workers(target: str, *, spot: bool, dedicated: bool) -> None:
    fault = parse_one(f"{target}:down")
    assert (fault.concerns(SPOT), fault.concerns(DEDICATED)) == (spot, dedicated)


def test_share_of_workers_is_exact_if_numbered_else_approximate() -> None:
    fault = parse_one("1/4:down")
    numbered = [Worker("spot", f"infer-spot-{n}") for n in range(1, 9)]
    assert [worker.name[-1] for worker in numbered if fault.concerns(worker)] == ["1", "5"]
    named = [Worker("spot", f"infer-spot-7c9f4b6d9-{n:x}z") for n in range(4000)]
    assert sum(map(fault.concerns, named)) == pytest.approx(1000, rel=0.1)
