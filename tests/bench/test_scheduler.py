"""The scheduler benchmark: arguments, table, JSON line, plot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "spot-traces"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.scheduler", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def _summary(*arguments: str) -> dict[str, Any]:
    process = _run(*arguments)
    assert process.returncode == 0, process.stdout + process.stderr
    summary: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return summary


def _traces(folder: Path, *markets: Sequence[int], gap: float = 300) -> Path:
    for number, market in enumerate(markets):
        path = folder / "some" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"metadata": {"gap_seconds": gap}, "data": list(market)}))
    return folder


def test_json_line_is_last(tmp_path: Path) -> None:
    traces = _traces(tmp_path, [16] * 400, [0] * 400)
    summary = _summary(
        *("--traces", str(traces), "--dedicated", "16", "--load", "0.6", "--hours", "24"),
        *("--windows", "2", "--price-ratio", "3", "--cold-start", "180", "--seed", "1", "--json"),
    )
    assert (summary["windows"], summary["misses"], summary["infeasible"]) == (4, 0, 0)
    # Half of the work costs a third, half costs the full price: no schedule is cheaper.
    assert summary["cost_vs_dedicated"] == pytest.approx((1 / 3 + 1) / 2, abs=0.01)
    assert summary["cost_vs_omniscient"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("market", "gap"),
    [
        pytest.param([0, 1, 1], 195, id="one replica, shorter than a window"),
        pytest.param([0] * 7, 60, id="no spot"),
        pytest.param([3, 0, 100], 3600, id="more than D, long gaps"),
        pytest.param([1], 7.5, id="one point, short gaps"),
    ],
)
def test_no_market_causes_misses(tmp_path: Path, market: list[int], gap: float) -> None:
    traces = _traces(tmp_path, market, gap=gap)
    summary = _summary(
        *("--traces", str(traces), "--dedicated", "3", "--load", "0.9", "--hours", "5"),
        *("--windows", "3", "--json"),
    )
    assert (summary["windows"], summary["misses"]) == (3, 0)


def test_infeasible_deadline_is_not_a_miss(tmp_path: Path) -> None:
    traces = _traces(tmp_path, [0] * 400)
    summary = _summary(
        *("--traces", str(traces), "--dedicated", "4", "--load", "1", "--windows", "2"), "--json"
    )
    assert (summary["misses"], summary["infeasible"]) == (0, 2)


def test_table_has_row_per_load(tmp_path: Path) -> None:
    traces = _traces(tmp_path, [4, 0] * 20, gap=600)
    process = _run("--traces", str(traces), "--windows", "1", "--hours", "2")
    rows = [line for line in process.stdout.splitlines() if line.startswith("|  ")]
    cells = [[cell.strip() for cell in row.split("|")[1:3]] for row in rows[1:]]
    assert cells == [
        [dedicated, load] for dedicated in ("16", "4") for load in ("0.20", "0.60", "0.95")
    ]


def test_run_is_plotted(tmp_path: Path) -> None:
    traces = _traces(tmp_path, [2, 0, 1, 3] * 20, gap=600)
    picture = tmp_path / "run.svg"
    _summary(
        *("--traces", str(traces), "--dedicated", "3", "--hours", "4", "--windows", "2"),
        *("--load", "0.5", "--json", "--plot", str(picture)),
    )
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"metadata": {"gap_seconds": 0}, "data": [1]}', '{"data": [1]}']
)
def test_invalid_trace_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    process = _run("--traces", str(tmp_path), "--dedicated", "1", "--load", "0.5")
    assert process.returncode == 1
    assert "bad.json: not a spot trace" in process.stderr


@pytest.mark.skipif(not REAL.exists(), reason="recorded markets are not available")
def test_no_deadline_is_missed_on_recorded_markets() -> None:
    summary = _summary(
        *("--traces", str(REAL), "--dedicated", "4", "--load", "0.95", "--windows", "5"),
        *("--seed", "11", "--no-greedy", "--json"),
    )
    assert summary["misses"] == summary["infeasible"] == 0
    assert summary["cost_vs_omniscient"] < 1.06
