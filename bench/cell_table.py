"""The tables of many cells: costs by the way to place, outages, fronts, lists."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cell_bounds import omniscient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.cell_run import Outage, Outcome, Run
    from bench.cell_world import Market

_BUSY = 500_000
"""Open requests of a cell from which the spread of load counts."""
HEAD = (
    "| seed | placed | cost, 10^-6 per request | of dedicated | of the bound | late requests, % "
    "| missed, % | late batches | on spot, % | cells' max / mean load |\n" + "|---" * 10 + "|"
)
OUTAGE_HEAD = (
    "| seed | outage | cost | late requests, % | late batches | of the cells away | repeated, % "
    "| refused creations | last one after, s | load of the others | their p99 wait, s |\n"
    + "|---" * 11
    + "|"
)


def figures(run: Run, outcome: Outcome) -> dict[str, Any]:
    """Return the figures of a run; costs are of a million requests that ended in time."""
    markets = run.world.markets
    bound = omniscient(markets, run.world.capacity, run.batches, outcome.useful)
    dedicated = min(market.dedicated for market in markets) / 3600 / run.world.capacity.rate
    lost = outcome.created + outcome.repeated - outcome.done - outcome.late - outcome.left
    return {
        "cost_per_million": round(1e6 * outcome.cost / outcome.useful, 3),
        "cost_vs_dedicated": round(outcome.cost / outcome.useful / dedicated, 4),
        "cost_vs_omniscient": round(outcome.cost / bound, 4),
        "requests": round(outcome.created),
        "batches": outcome.batches,
        "late_share": round(outcome.late / outcome.created, 6),
        "missed_share": round(outcome.missed / outcome.created, 6),
        "late_batches": outcome.late_batches,
        "late_batches_of_away": sum(
            batch.cell in outcome.away for batch in run.batches if run.is_late(batch)
        ),
        "on_spot_share": round(outcome.on_spot / outcome.done, 4),
        "spread": round(_spread(markets, outcome), 2),
        "lost": round(lost),
        "plans": outcome.planned,
    }


def _spread(markets: Sequence[Market], outcome: Outcome) -> float:
    """Return the load of a zone's fullest cell relative to the mean of its cells, over time."""
    of_zone = np.unique([market.zone for market in markets], return_inverse=True)[1]
    ratios = []
    for moment in outcome.history:
        for zone in range(of_zone.max() + 1):
            loads = moment.open[of_zone == zone]
            if loads.mean() > _BUSY:
                ratios.append(float(loads.max() / loads.mean()))
    return fmean(ratios) if ratios else 1.0


def failover(run: Run, outcome: Outcome, outage: Outage) -> dict[str, Any]:
    """Return what an outage did, and the load of the other cells meanwhile: mean, and p99 seconds."""
    others = np.ones(len(run.world.markets), dtype=bool)
    others[list(outcome.away)] = False
    until = outage.at + outage.seconds
    during = [each for each in outcome.history if outage.at < each.at <= until]
    return {
        "repeated_share": round(outcome.repeated / outcome.created, 5),
        "refused": outcome.refused,
        "elsewhere_after_s": outcome.elsewhere,
        "open_elsewhere": round(fmean(float(each.open[others].mean()) for each in during)),
        "wait_p99_s": round(fmean(float(np.percentile(each.waits[others], 99)) for each in during)),
    }


def print_costs(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of costs; of the zones alone the cheapest, the mean and the dearest."""
    print(HEAD)
    for seed in dict.fromkeys(row["seed"] for row in rows):
        of_seed = [row for row in rows if row["seed"] == seed]
        zones = sorted(
            (row for row in of_seed if "zone" in row), key=lambda row: row["cost_per_million"]
        )
        for row in of_seed:
            if "zone" not in row and row["placed"] not in {"waits", "evacuated"}:
                _print_cost(row["placed"], [row])
        _print_cost("one zone, the cheapest", zones[:1])
        _print_cost("one zone, mean", zones)
        _print_cost("one zone, the dearest", zones[-1:])


def _print_cost(name: str, rows: Sequence[dict[str, Any]]) -> None:
    def mean(column: str) -> float:
        return fmean(row[column] for row in rows)

    print(
        f"| {rows[0]['seed']} | {name} | {mean('cost_per_million'):.1f} "
        f"| {mean('cost_vs_dedicated'):.3f} | {mean('cost_vs_omniscient'):.3f} "
        f"| {100 * mean('late_share'):.3f} | {100 * mean('missed_share'):.3f} "
        f"| {mean('late_batches'):.0f} / {mean('batches'):.0f} | {100 * mean('on_spot_share'):.1f} "
        f"| {mean('spread'):.2f} |"
    )


def print_outages(rows: Sequence[dict[str, Any]], outage: Outage, evacuate: float) -> None:
    """Print the table of outages, beside the same run without one."""
    print(
        f"\nOutage of {outage.share:.0%} of the cells for {outage.seconds / 60:.0f} min; "
        f"evacuated after {evacuate / 60:.0f} min"
    )
    print(OUTAGE_HEAD)
    without: dict[str, Any] = {}
    for row in rows:
        if row["placed"] not in {"by fronts", "waits", "evacuated"}:
            continue
        without = row if row["placed"] == "by fronts" else without
        name = "none" if row is without else row["placed"]
        print(
            f"| {row['seed']} | {name} | {row['cost_per_million']:.1f} "
            f"| {100 * row['late_share']:.3f} | {row['late_batches']} "
            f"| {row['late_batches_of_away']} | {100 * row['repeated_share']:.2f} "
            f"| {row['refused']} | {row['elsewhere_after_s']:.0f} "
            f"| {row['open_elsewhere'] / without['open_elsewhere']:.3f} x | {row['wait_p99_s']} |"
        )


def print_fronts(cpu: Sequence[dict[str, Any]], herds: Sequence[dict[str, Any]]) -> None:
    """Print the CPU time of a placement, and the spread of load."""
    print("\n| fleets of each cell | CPU of a placement: p50, us | p99, us |\n|---|---|---|")
    for row in cpu:
        print(f"| {row['quotes']} | {row['p50_us']} | {row['p99_us']} |")
    print(
        "\n| heartbeats every, s | queued work of a cell: p50, s | p99, s | max, s "
        "| max if all take the least loaded, s |\n|---|---|---|---|---|"
    )
    for row in herds:
        values = [row[name] for name in ("ours_p50_s", "ours_p99_s", "ours_max_s", "least_max_s")]
        print(f"| {row['age_s']:g} | {' | '.join(map(str, values))} |")


def print_lists(
    rows: Sequence[dict[str, Any]],
    merging: Sequence[dict[str, Any]],
    heard: Sequence[dict[str, float]],
) -> None:
    """Print the latency of lists, and the time in which a front hears all cells."""
    print(
        "\n| cells of a list | disturbed | all at once: p50, ms | p99, ms | 32 at a time: p50, ms "
        "| p99, ms | lists with a cell missing, % | merging, CPU ms |\n" + "|---" * 8 + "|"
    )
    cost = {row["cells"]: row["ms"] for row in merging}
    for row in rows:
        print(
            f"| {row['cells']} | {row['disturbed']} | {row['at_once_p50_ms']} "
            f"| {row['at_once_p99_ms']} | {row['pool_p50_ms']} | {row['pool_p99_ms']} "
            f"| {100 * row['incomplete']:.1f} | {cost[row['cells']]:.2f} |"
        )
    for each in heard:
        print(f"All heartbeats with {each['away']:.0%} of the cells away: {each['mean_s']} s")
