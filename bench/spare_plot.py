"""A plot of a batch in spare capacity: latency of online traffic, limit, replicas, progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

from bench.shared_engine import percentile
from bench.spare import DEADLINE, DOUBLES_AT, REQUESTS

if TYPE_CHECKING:
    from pathlib import Path

    from bench.spare import Job

mpl.use("agg")

_WINDOW = 15.0


def draw(path: Path, job: Job) -> None:
    """Draw a run into a file; its extension selects the format."""
    from matplotlib import pyplot

    figure, (latency, limits, progress) = pyplot.subplots(3, 1, sharex=True, figsize=(9, 8))
    times = [moment.at for moment in job.moments]
    windows = range(0, int(DEADLINE), int(_WINDOW))
    latency.plot(
        [start + _WINDOW / 2 for start in windows],
        [1000 * _p99(job, start) for start in windows],
        color="#1f618d",
    )
    latency.set_ylabel("online p99 to first token, ms")
    latency.set_ylim(bottom=0)

    limits.plot(times, [moment.limit for moment in job.moments], color="#7fb3d5", label="limit")
    limits.set_ylabel("requests in flight")
    replicas = limits.twinx()
    replicas.step(
        times, job.replicas[1:], where="post", color="#d98880", label="dedicated replicas"
    )
    replicas.set_ylabel("dedicated replicas")
    replicas.set_ylim(0, 5)

    left = [100 * moment.left / REQUESTS for moment in job.moments]
    progress.plot(times, left, color="#1e8449")
    progress.set_ylabel("requests that wait for spare, %")
    progress.set_xlabel("seconds since the batch was created")
    for axes in (latency, limits, progress):
        axes.axvline(DOUBLES_AT, color="grey", linestyle="--", linewidth=0.9)
        axes.axvline(DEADLINE, color="black", linewidth=0.9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _p99(job: Job, start: float) -> float:
    samples = [seconds for at, seconds in job.engine.first_tokens if start <= at < start + _WINDOW]
    return percentile(samples, 0.99)
