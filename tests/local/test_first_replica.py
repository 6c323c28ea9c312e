"""Replicas started from zero by a notification, long before the next poll."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.local.database import engine
from lowtide.local.files import SUPERUSER, read_or_create
from lowtide.local.ports import free_port
from lowtide.local.runtime import Options, down, status, up_detached
from lowtide.pipeline.split_store import QUEUED_CHANNEL

from .conftest import eventually, write_overlay
from .test_runtime import KEDA, KNATIVE, SERVER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.local.state import ProcessStatus

POLL_SECONDS, BOUND = 600, 30.0


@pytest.fixture
def options(tmp_path: Path) -> Iterator[Options]:
    slow = KEDA.replace("pollingInterval: 0.1", f"pollingInterval: {POLL_SECONDS}")
    assert slow != KEDA
    write_overlay(tmp_path, {"knative.yaml": KNATIVE, "keda.yaml": slow})
    (tmp_path / "server.py").write_text(f"print('began', flush=True)\n{SERVER}")
    options = Options(
        root=tmp_path,
        data_dir=tmp_path / "data",
        port=free_port(),
        portal_port=free_port(),
        ready_timeout=30,
    )
    yield options
    down(options.data_dir)


def test_notification_starts_one_replica_and_then_the_others(options: Options) -> None:
    up_detached(options)
    log = options.data_dir / "lowtide.log"
    # The first poll, without the table; the next one is far away.
    eventually(lambda: "worker: no metric" in log.read_text())
    port = next(one.port for one in processes(options) if one.name == "postgres")
    password = read_or_create(options.data_dir).passwords[SUPERUSER]
    with engine(f"postgresql://postgres:{password}@127.0.0.1:{port}/lowtide").connect() as one:
        one.execute(text("CREATE TABLE wish AS SELECT 5 AS wanted"))
        one.execute(text("GRANT SELECT ON wish TO PUBLIC"))
        one.execute(text(f"NOTIFY {QUEUED_CHANNEL}"))
    eventually(
        lambda: [one.state for one in processes(options) if one.name.startswith("worker-")],
        lambda states: states == ["ready", "ready"],
        within=BOUND,
    )
    lines = log.read_text()
    assert lines.index("worker-1     | serving") < lines.index("worker-2     | began")


def processes(options: Options) -> list[ProcessStatus]:
    current = status(options.data_dir)
    assert current is not None
    return current.processes
