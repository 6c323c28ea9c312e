"""Plots of many cells: costs and an outage over time, the spread of load, the latency of lists."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

mpl.use("agg")

_HOUR = 3600.0
_BLUE, _RED, _GREEN, _GREY = "#1f618d", "#d98880", "#1e8449", "#7f8c8d"


def draw(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    herds: Sequence[dict[str, Any]],
    lists: Sequence[dict[str, Any]],
    outage: tuple[float, float],
) -> None:
    """Draw `cells-cost.png` and `cells-front.png`; an outage is from and until so many seconds."""
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(2, 1, figsize=(9, 8))
    _costs(axes[0], rows)
    _replicas(axes[1], rows, outage)
    figure.tight_layout()
    figure.savefig(folder / "cells-cost.png")
    pyplot.close(figure)

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
    _herding(axes[0], herds)
    _lists(axes[1], lists)
    figure.tight_layout()
    figure.savefig(folder / "cells-front.png")
    pyplot.close(figure)


def _costs(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    seeds = sorted({row["seed"] for row in rows})
    ours = {row["seed"]: row for row in rows if row["placed"] == "by fronts"}
    blind = {row["seed"]: row for row in rows if row["placed"] == "at random"}
    for seed in seeds:
        zones = [
            row["cost_per_million"]
            for row in rows
            if row["seed"] == seed and row["placed"] == "one zone"
        ]
        axes.plot([seed] * len(zones), zones, "_", color=_GREY, markersize=14)
        axes.plot(seed, fmean(zones), "D", color=_GREY)
        cost = ours[seed]["cost_per_million"]
        axes.plot(seed, cost, "o", color=_BLUE)
        axes.plot(seed, blind[seed]["cost_per_million"], "s", color=_RED)
        axes.plot(seed, cost / ours[seed]["cost_vs_omniscient"], "^", color=_GREEN)
    for marker, color, label in (
        ("_", _GREY, "each zone alone"),
        ("D", _GREY, "mean of the zones"),
        ("s", _RED, "all zones, at random"),
        ("o", _BLUE, "all zones, by fronts"),
        ("^", _GREEN, "lower bound that knows the markets"),
    ):
        axes.plot([], [], marker, color=color, label=label)
    axes.set_xticks(seeds)
    axes.set_xlim(min(seeds) - 0.5, max(seeds) + 2.0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seed")
    axes.set_ylabel("cost of 1,000,000 requests")
    axes.legend(loc="center right", fontsize="small")


def _replicas(axes: Axes, rows: Sequence[dict[str, Any]], outage: tuple[float, float]) -> None:
    """Draw the replicas that work in the first seed's run whose outage ends with a return."""
    run = next(row for row in rows if row["placed"] == "waits")
    hours = [each[0] / _HOUR for each in run["history"]]
    market, spot, dedicated = (
        [each[column] / 1000 for each in run["history"]] for column in (1, 2, 3)
    )
    both = [a + b for a, b in zip(spot, dedicated, strict=True)]
    axes.fill_between(hours, spot, step="post", color="#7fb3d5", label="on spot")
    axes.fill_between(hours, spot, both, step="post", color=_RED, label="on dedicated")
    axes.step(hours, market, where="post", color=_BLUE, linewidth=0.8, label="available spot")
    axes.axvspan(
        outage[0] / _HOUR, outage[1] / _HOUR, color="#f9e79f", zorder=0, label="outage of 10 %"
    )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("hours")
    axes.set_ylabel("thousands of replicas that work")
    axes.legend(loc="upper right", ncols=2, fontsize="small")


def _herding(axes: Axes, herds: Sequence[dict[str, Any]]) -> None:
    ages = [row["age_s"] for row in herds]
    axes.plot(ages, [row["least_max_s"] for row in herds], "s--", color=_RED, label="least loaded")
    axes.plot(ages, [row["ours_max_s"] for row in herds], "o-", color=_BLUE, label="fronts, max")
    axes.plot(ages, [row["ours_p50_s"] for row in herds], "^-", color=_GREEN, label="fronts, p50")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ages, [f"{age:g}" for age in ages])
    axes.set_xlabel("seconds between heartbeats")
    axes.set_ylabel("queued work of a cell, seconds")
    axes.legend(fontsize="small")


def _lists(axes: Axes, lists: Sequence[dict[str, Any]]) -> None:
    styles = {
        "all well": (_BLUE, "-"),
        "1 % slow": (_GREEN, "-"),
        "1 % away, not known yet": (_RED, "-"),
    }
    for name, (color, style) in styles.items():
        rows = [row for row in lists if row["disturbed"] == name]
        cells = [row["cells"] for row in rows]
        axes.plot(cells, [row["at_once_p99_ms"] for row in rows], style, color=color, label=name)
    well = [row for row in lists if row["disturbed"] == "all well"]
    axes.plot(
        [row["cells"] for row in well],
        [row["pool_p99_ms"] for row in well],
        ":",
        color=_BLUE,
        label="all well, 32 at a time",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("cells of a list")
    axes.set_ylabel("p99 of a merged list, ms")
    axes.legend(fontsize="small")
