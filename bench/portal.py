"""What the portal's pages of batches ask of the database, at 10,000 batches and 1,000,000 requests.

    python -m bench.portal [--rounds N] [--quick]

Prints p50 and p95 of each page's reads in milliseconds, then one JSON line; exits with 1 if a p95
is above 200 ms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.portal_volume import fill
from bench.stage import Stage
from lowtide.batches.detail_store import BatchDetailStore
from lowtide.batches.list_store import BatchListStore
from lowtide.batches.model import BatchStatus, RequestStatus
from lowtide.batches.views import BatchFilter, BatchOrder, mark_of
from lowtide.database.connections import connect
from lowtide.status.history import HistoryRange, HistoryStore
from lowtide.status.snapshot_store import SnapshotStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from lowtide.core.ids import BatchId

BAR_MS = 200.0
PAGE = 51
EVERYTHING = BatchFilter()


def looks_at(engine: Engine, batch: BatchId) -> dict[str, Callable[[], object]]:
    """Return the reads of each page by name."""
    lists, details = BatchListStore(engine), BatchDetailStore(engine)
    middle = mark_of(lists.page(None, EVERYTHING, BatchOrder.NEWEST, after=None, limit=4000)[-1])
    narrow = BatchFilter(frozenset({BatchStatus.EXPIRED}), user="user-9")
    nothing = BatchFilter(user="nobody")
    found: dict[str, Callable[[], object]] = {
        "snapshot": SnapshotStore(engine).read,
        "count": partial(lists.count, None, EVERYTHING, limit=1001),
        "count, nothing matches": partial(lists.count, None, nothing, limit=1001),
    }
    for name, wanted in (("all", EVERYTHING), ("expired of a user", narrow), ("nothing", nothing)):
        for order in BatchOrder:
            page = partial(lists.page, None, wanted, order, after=middle, limit=PAGE)
            found[f"batches, {name}, {order}"] = page
    found["batch of 50,000"] = partial(details.details, None, batch)
    for status in (None, *RequestStatus):
        lines = partial(details.lines, None, batch, status, after=0, limit=PAGE)
        found[f"requests, {status or 'all'}"] = lines
        found[f"requests, {status or 'all'}, by custom_id"] = partial(lines, "request-4999")
    found["request"] = partial(details.line, None, batch, 77)
    for span in HistoryRange:
        found[f"history, {span}"] = partial(HistoryStore(engine).read, span)
    return found


def measured(look: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return p50 and p95 in milliseconds, after one call to warm up."""
    look()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        look()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40, help="calls per query")
    parser.add_argument("--quick", action="store_true", help="a tenth of all sizes")
    given = parser.parse_args()
    share = 10 if given.quick else 1
    rounds = max(10, given.rounds // share)
    folder = Path(tempfile.mkdtemp(prefix="bench-portal-"))
    try:
        with Stage(folder) as stage:
            owner, worker, operator = (
                connect(stage.url(role), timeout=300) for role in ("owner", "worker", "operator")
            )
            batch = fill(worker, owner, batches=10_000 // share, requests=1_000_000 // share)
            found = {
                name: measured(look, rounds) for name, look in looks_at(operator, batch).items()
            }
            for engine in (owner, worker, operator):
                engine.dispose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, (middle, high) in found.items():
        print(f"{name:32} p50 {middle:7.1f} ms   p95 {high:7.1f} ms")
    print(json.dumps({name: [round(each, 1) for each in pair] for name, pair in found.items()}))
    slow = [name for name, (_, high) in found.items() if high > BAR_MS]
    if slow:
        raise SystemExit(f"Above {BAR_MS:g} ms: {', '.join(slow)}")


if __name__ == "__main__":
    main()
