"""The first claim from zero workers does not wait for the autoscaler's poll."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from lowtide.cli.client import open_client
from lowtide.local.options import Options
from lowtide.local.ports import free_port
from lowtide.local.runtime import Status, down, up_detached
from tests.docs.pages import ROOT
from tests.e2e.questions import chat_file
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLL, SLOW_POLL = "pollingInterval: 5", "pollingInterval: 3600"
BOUND = 60.0
"""Seconds for the whole batch, of which a start takes one or two on an idle machine."""


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Status]:
    """A stack that polls once an hour."""
    monkeypatch.setenv("LOWTIDE_ENGINE", "noop")
    for name in ("functions", "portal", "monitoring"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("knative", "keda"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in (tmp_path / "keda").glob("infer-*.yaml"):
        assert POLL in path.read_text()
        path.write_text(path.read_text().replace(POLL, SLOW_POLL))
    data_dir = tmp_path / "data"
    yield up_detached(
        Options(
            root=tmp_path,
            data_dir=data_dir,
            port=free_port(),
            portal_port=free_port(),
            quiet=True,
        )
    )
    down(data_dir)


def test_batch_from_zero_workers_does_not_wait_for_the_poll(stack: Status) -> None:
    assert not [one.name for one in stack.processes if one.name.startswith("infer-")]
    client = open_client(stack.base_url, stack.api_key)
    file = client.files.create(file=("input.jsonl", chat_file(3)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    until(
        lambda: client.batches.retrieve(batch.id).status == "completed",
        "the batch is completed",
        within=BOUND,
        every=0.2,
    )
    client.close()
