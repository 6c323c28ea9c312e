"""What an engine says to a request with zero retention is no reason that others see."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.engines.outcomes import NoAnswer, Unanswered
from lowtide.objects.names import DataKeyId
from lowtide.queue.claims import Claim
from lowtide.worker.engine_watch import EngineWatch
from tests.worker.workers import Meter, ScriptedEngine, until

SAID = "ZanzibarCoffee is too hot"


@pytest.mark.parametrize("sealed", [True, False], ids=["zero retention", "plain"])
def test_breaker_names_the_kind_of_failure_alone(*, sealed: bool) -> None:
    batch = BatchId(new_id())
    data_key = DataKeyId(DEFAULT_TENANT, batch) if sealed else None

    async def fail() -> str:
        watch = EngineWatch(
            ScriptedEngine(),
            Meter(),
            concurrency=8,
            cap=1.0,
            patience=1.0,
            rng=Random(0),  # noqa: S311
        )
        running = asyncio.create_task(watch.run())
        await until(lambda: not watch.is_shut_off)
        for line in range(3):
            claim = Claim(batch, "/v1/embeddings", "k", line, 0, 1, 0, 0, data_key=data_key)
            await watch.judge(claim, Unanswered(NoAnswer.UNREACHED, SAID))
        running.cancel()
        return watch.reason

    reason = asyncio.run(fail())
    assert (SAID in reason) is not sealed
    assert ("connection_error" in reason) is sealed
