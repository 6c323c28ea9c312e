"""The split function, killed again and again, splits every segment once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from lowtide.core.ids import format_batch_id
from lowtide.files.index import SegmentSize
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from tests.e2e.waiting import until
from tests.faults.servers import serving
from tests.http.forms import line
from tests.pipeline.segmented import Installation
from tests.worker.workers import Sink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowtide.core.ids import BatchId
    from tests.conftest import Database
    from tests.faults.servers import Server
    from tests.worlds import World

SEGMENTS, EACH = 12, 4000
LINES = SEGMENTS * EACH - 7
ROUNDS = 40
DELAYS = random.Random(4)  # noqa: S311 - not for secrets


@pytest.fixture(scope="session")
def database_name() -> str:
    """The name of this module's database."""
    return "shared_faults_segments"


def _deliver(server: Server, type_: str, data: Mapping[str, object]) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/x", "ce-type": type_}
    with suppress(httpx.HTTPError):
        httpx.post(server.url, json=dict(data), headers=headers, timeout=60, trust_env=False)


def _deliver_all(
    world: World, server: Server, events: Sequence[tuple[str, Mapping[str, object]]]
) -> None:
    """Deliver each event twice, and kill the function soon after it has split something."""
    calls = [
        threading.Thread(target=_deliver, args=(server, type_, data))
        for type_, data in events
        for _ in range(2)
    ]
    before = _split(world)
    for call in calls:
        call.start()
    until(lambda: _split(world) > before, "a segment is split", within=60)
    time.sleep(DELAYS.uniform(0, 0.2))
    for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    for call in calls:
        call.join()


def _split(world: World) -> int:
    return int(world.value("SELECT count(*) FROM segments WHERE split_at IS NOT NULL"))


def _announced(world: World, batch: BatchId) -> list[tuple[str, Mapping[str, object]]]:
    """Let the tick announce what is not split, and return the events in any order."""
    name = format_batch_id(batch)
    world.run("UPDATE batches SET nudged_at = now() - interval '1 h'")
    world.run("UPDATE segments SET split_at = split_at - interval '1 h'")
    world.sweep(stalled_after=60)
    rows = world.rows("SELECT type, data FROM outbox WHERE data->>'batch_id' = :id", id=name)
    world.run("DELETE FROM outbox")
    events = [(row.type, row.data) for row in rows]
    DELAYS.shuffle(events)
    return events


def test_killed_split_function_loses_and_doubles_nothing(
    world: World, shared_database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "objects"
    installation = Installation(world, JoinedObjects(ObstoreObjects(f"file://{folder}")), Sink())
    size = SegmentSize(max_lines=EACH)
    file = installation.upload((line(str(n)) for n in range(1, LINES + 1)), size)
    batch = world.new_batch(input_file=file.id)
    settings = {"LOWTIDE_DATABASE_URL": shared_database.url("worker")}
    kills = 0
    with serving("split", folder, settings, kind="cloudevent") as server:
        for _ in range(ROUNDS):
            events = _announced(world, batch)
            if not events:
                break
            _deliver_all(world, server, events)
            kills += 1
    assert kills >= 2
    assert world.value("SELECT count(*) FROM segments WHERE split_at IS NULL") == 0
    assert world.lines("requests", batch) == list(range(1, LINES + 1))
    assert world.lines("queue", batch) == list(range(1, LINES + 1))
    row = world.row(batch)
    assert (row.status, row.total, row.model) == ("in_progress", LINES, "m")
    assert world.rows("SELECT * FROM orphan_objects") == []
