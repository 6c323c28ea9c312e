"""Events wait in the outbox until the sink took them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.domain.events import EventType, batch_event
from lowtide.domain.ids import DEFAULT_TENANT, BatchId
from lowtide.postgres.outbox import PostgresOutbox, add_event
from lowtide.wiring import new_id

if TYPE_CHECKING:
    from tests.postgres.worlds import World


def _add(world: World, count: int) -> list[BatchId]:
    batches = [BatchId(new_id()) for _ in range(count)]
    with world.worker.begin() as connection:
        for batch in batches:
            event = batch_event(new_id(), EventType.BATCH_DRAINED, DEFAULT_TENANT, batch)
            add_event(connection, event)
    return batches


def test_events_come_back_as_they_were_oldest_first(world: World) -> None:
    batches = _add(world, 3)
    waiting = world.outbox.waiting(10, 0)
    assert [event.subject for event in waiting] == [f"batch_{batch.hex}" for batch in batches]
    assert [(event.type, event.tenant, event.data) for event in waiting] == [
        (EventType.BATCH_DRAINED, DEFAULT_TENANT, {"batch_id": f"batch_{batch.hex}"})
        for batch in batches
    ]
    assert world.outbox.waiting(2, 0) == waiting[:2]


def test_only_events_old_enough_are_sent_again(world: World) -> None:
    first, _ = _add(world, 2)
    world.run(
        "UPDATE outbox SET created_at = now() - interval '31 s' WHERE subject = :subject",
        subject=f"batch_{first.hex}",
    )
    assert [event.subject for event in world.outbox.waiting(10, 30)] == [f"batch_{first.hex}"]


@pytest.mark.parametrize("role", ["worker", "api"])
def test_an_accepted_event_is_forgotten(world: World, role: str) -> None:
    _add(world, 2)
    first, second = world.outbox.waiting(10, 0)
    outbox = PostgresOutbox(world.database.engine(role))
    outbox.forget(first)
    outbox.forget(first)
    assert world.outbox.waiting(10, 0) == [second]


def test_an_event_lives_and_dies_with_its_transaction(world: World) -> None:
    event = batch_event(new_id(), EventType.BATCH_CREATED, DEFAULT_TENANT, BatchId(new_id()))
    with world.worker.connect() as connection:
        connection.execute(text("SELECT 1"))
        add_event(connection, event)
        connection.rollback()
    assert world.outbox.waiting(10, 0) == []
