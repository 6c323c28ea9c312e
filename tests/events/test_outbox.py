"""The outbox: events stay until the sink accepts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.events.model import EventType, batch_event
from lowtide.events.outbox import Outbox, add_event

if TYPE_CHECKING:
    from tests.worlds import World


def _add(world: World, count: int) -> list[BatchId]:
    batches = [BatchId(new_id()) for _ in range(count)]
    with world.worker.begin() as connection:
        for batch in batches:
            event = batch_event(new_id(), EventType.BATCH_DRAINED, DEFAULT_TENANT, batch)
            add_event(connection, event)
    return batches


def _make_due(world: World) -> None:
    world.run("UPDATE outbox SET next_at = now()")


def test_due_events_are_returned_unchanged(world: World) -> None:
    batches = _add(world, 3)
    _make_due(world)
    due = sorted(world.outbox.due(10), key=lambda event: event.id)
    assert [(event.subject, event.type, event.tenant, event.data) for event in due] == [
        (name, EventType.BATCH_DRAINED, DEFAULT_TENANT, {"batch_id": name})
        for name in (f"batch_{batch.hex}" for batch in batches)
    ]


def test_new_event_is_not_due_before_its_senders_attempt(world: World) -> None:
    _add(world, 1)
    assert world.outbox.due(10) == []
    world.run("UPDATE outbox SET next_at = next_at - interval '5 s'")
    assert len(world.outbox.due(10)) == 1


def test_retry_delay_doubles_up_to_maximum(world: World) -> None:
    _add(world, 1)
    delays = []
    for _ in range(7):
        _make_due(world)
        assert len(world.outbox.due(10)) == 1
        assert world.outbox.due(10) == [], "a second scheduler must not send it"
        delays.append(round(world.value("SELECT extract(epoch FROM next_at - now()) FROM outbox")))
    assert delays == [10, 20, 40, 80, 160, 300, 300]


def test_due_events_are_returned_once_in_order_of_time(world: World) -> None:
    first, second = _add(world, 2)
    _make_due(world)
    world.run(
        "UPDATE outbox SET next_at = now() - interval '1 s' WHERE subject = :subject",
        subject=f"batch_{second.hex}",
    )
    assert [event.subject for event in world.outbox.due(1)] == [f"batch_{second.hex}"]
    assert [event.subject for event in world.outbox.due(9)] == [f"batch_{first.hex}"]


def test_event_is_given_up_after_a_day(world: World, caplog: pytest.LogCaptureFixture) -> None:
    old, _ = _add(world, 2)
    _make_due(world)
    world.run(
        "UPDATE outbox SET created_at = now() - interval '25 h' WHERE subject = :subject",
        subject=f"batch_{old.hex}",
    )
    assert len(world.outbox.due(10)) == 1
    assert world.value("SELECT count(*) FROM outbox") == 1
    assert [record.getMessage() for record in caplog.records] == ["event.given_up"]


def test_unknown_event_type_does_not_block_others(world: World) -> None:
    _add(world, 2)
    _make_due(world)
    world.run(
        "UPDATE outbox SET type = 'dev.lowtide.new' WHERE id = (SELECT id FROM outbox LIMIT 1)"
    )
    assert [event.type for event in world.outbox.due(10)] == [EventType.BATCH_DRAINED]
    assert world.value("SELECT count(*) FROM outbox") == 2


@pytest.mark.parametrize("role", ["worker", "api"])
def test_forgotten_event_is_deleted(world: World, role: str) -> None:
    _add(world, 2)
    _make_due(world)
    first, second = world.outbox.due(10)
    outbox = Outbox(world.database.engine(role))
    outbox.forget(first)
    outbox.forget(first)
    assert world.value("SELECT id FROM outbox") == second.id


def test_rollback_discards_event(world: World) -> None:
    event = batch_event(new_id(), EventType.BATCH_CREATED, DEFAULT_TENANT, BatchId(new_id()))
    with world.worker.connect() as connection:
        connection.execute(text("SELECT 1"))
        add_event(connection, event)
        connection.rollback()
    assert world.value("SELECT count(*) FROM outbox") == 0
