"""A plot of one run: the market, the replicas of each pool, the progress and the deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

from bench.spot_bounds import all_dedicated
from bench.spot_replay import replay

if TYPE_CHECKING:
    from pathlib import Path

    from bench.spot_bounds import Window
    from lowtide.planning.demand import Capacity

mpl.use("agg")

_HOUR = 3600.0


def draw(path: Path, window: Window, capacity: Capacity) -> None:
    """Draw a window's run into a file; its extension selects the format."""
    from matplotlib import pyplot

    outcome = replay(window, capacity, record=True)
    end = window.seconds if outcome.ended is None else outcome.ended
    hours = [moment.at / _HOUR for moment in outcome.history] + [end / _HOUR]
    last = outcome.history[-1]

    figure, (pools, progress) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6))
    spot = [moment.spot for moment in outcome.history] + [last.spot]
    both = [moment.spot + moment.dedicated for moment in outcome.history]
    both.append(last.spot + last.dedicated)
    market = [moment.market for moment in outcome.history] + [last.market]
    pools.fill_between(hours, spot, step="post", color="#7fb3d5", label="on spot")
    pools.fill_between(hours, spot, both, step="post", color="#d98880", label="on dedicated")
    pools.step(hours, market, where="post", color="#1f618d", linewidth=0.8, label="available spot")
    pools.set_ylabel("replicas")
    pools.legend(loc="upper left", ncols=3, fontsize="small")

    done = [100 * (1 - moment.open / window.lines) for moment in outcome.history]
    done.append(100.0 if outcome.ended is not None else done[-1])
    alone = all_dedicated(window, capacity)
    progress.plot(hours, done, color="#1e8449", label="done")
    progress.plot(
        [(window.seconds - alone + capacity.cold_start) / _HOUR, window.seconds / _HOUR],
        [0, 100],
        color="#b03a2e",
        linestyle="--",
        linewidth=0.9,
        label="all dedicated replicas must run from here",
    )
    progress.axvline(window.seconds / _HOUR, color="black", linewidth=0.9, label="deadline")
    progress.set_ylabel("requests with a result, %")
    progress.set_xlabel("hours since the batch was created")
    progress.legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
