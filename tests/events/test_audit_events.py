"""Each entry of the audit log is an event: of its transaction, and out of its writer's reach."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.database.connections import acting_for
from lowtide.events.model import EventType
from lowtide.events.outbox import AUDIT_DUE, DUE, AuditOutbox
from lowtide.scheduler.pauses import PauseStore
from lowtide.tenants.audit import AuditLog, note
from tests.plans import plan_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.worlds import World


def _note(world: World, *subjects: str) -> None:
    with acting_for(world.api, DEFAULT_TENANT) as connection:
        note(connection, DEFAULT_TENANT, "laptop (api key 1)", "files.create", subjects)


def _told(entries: Iterable[object]) -> list[dict[str, Any]]:
    """Return entries, as printed or as sent, with their times parsed."""
    told = [json.loads(msgspec.json.encode(entry)) for entry in entries]
    return [entry | {"at": datetime.fromisoformat(entry["at"])} for entry in told]


def test_events_have_the_entries_that_an_export_prints(world: World) -> None:
    operator = world.database.engine("operator")
    _note(world, "file-1", "file-2")
    PauseStore(operator).pause(Pool.SPOT, "ana (cli)")
    due = AuditOutbox(world.worker).due(10)
    assert {(event.type, event.subject, event.tenant) for event in due} == {
        (EventType.AUDIT, "files.create", DEFAULT_TENANT),
        (EventType.AUDIT, "pool.paused", None),
    }
    sent = sorted(_told(event.data for event in due), key=lambda entry: entry["id"])
    assert sent == _told(AuditLog(operator).export(settled=0))
    assert [(entry["tenant"], entry["subject"]) for entry in sent] == [
        ("default", "file-1"),
        ("default", "file-2"),
        (None, FleetPool(DEFAULT_FLEET, Pool.SPOT).key),
    ]


def test_rolled_back_entry_is_no_event(world: World) -> None:
    with world.database.engine("operator").connect() as connection:
        note(connection, DEFAULT_TENANT, "ana", "key.created", ["a"])
        waiting = connection.execute(text("SELECT count(*) FROM outbox")).scalar_one()
        connection.rollback()
    assert (waiting, world.value("SELECT count(*) FROM outbox")) == (1, 0)


def test_events_of_batches_and_of_the_audit_log_are_due_apart(world: World) -> None:
    world.new_batch()
    _note(world, "file-1")
    world.run("UPDATE outbox SET next_at = now()")
    batches, entries = world.outbox, AuditOutbox(world.worker)
    assert [event.type for event in batches.due(10)] == [EventType.BATCH_CREATED]
    (entry,) = entries.due(10)
    assert entry.type is EventType.AUDIT
    entries.forget(entry)
    assert world.value("SELECT type FROM outbox") == EventType.BATCH_CREATED


def test_forgotten_event_of_the_installation_is_deleted(world: World) -> None:
    PauseStore(world.database.engine("operator")).pause(Pool.SPOT, "ana")
    outbox = AuditOutbox(world.worker)
    (event,) = outbox.due(10)
    outbox.forget(event)
    assert world.value("SELECT count(*) FROM outbox") == 0


@pytest.mark.parametrize(("role", "readable"), [("api", 0), ("operator", 1)])
def test_who_writes_an_entry_cannot_remove_its_event(
    world: World, role: str, readable: int
) -> None:
    _note(world, "file-1")
    with acting_for(world.database.engine(role), DEFAULT_TENANT) as connection:
        seen = connection.execute(text("SELECT count(*) FROM outbox")).scalar_one()
        removed = connection.execute(text("DELETE FROM outbox")).rowcount
    assert (seen, removed) == (readable, 0)
    assert world.value("SELECT count(*) FROM outbox") == 1


def test_tables_of_the_writer_do_not_stand_in_for_those_of_the_trigger(world: World) -> None:
    with acting_for(world.api, DEFAULT_TENANT) as connection:
        for table in (
            "outbox (LIKE public.outbox INCLUDING DEFAULTS)",
            "tenants (id uuid, name text)",
        ):
            connection.execute(text(f"CREATE TEMP TABLE {table} ON COMMIT DROP"))
        note(connection, DEFAULT_TENANT, "laptop (api key 1)", "files.create", ["file-1"])
    (event,) = AuditOutbox(world.worker).due(10)
    assert (event.data["tenant"], event.data["subject"]) == ("default", "file-1")


@pytest.mark.parametrize(
    ("statement", "index"), [(DUE, "outbox_due"), (AUDIT_DUE, "outbox_audit_due")]
)
def test_events_of_each_kind_are_found_by_their_own_index(
    world: World, statement: str, index: str
) -> None:
    _note(world, *map(str, range(5000)))
    for _ in range(3):
        world.new_batch()
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE outbox"))
    nodes = plan_nodes(world.worker, statement, limit=10, base=10.0, most=300.0, kept=86_400.0)
    assert index in {node.get("Index Name") for node in nodes}
    assert "Seq Scan" not in {node["Node Type"] for node in nodes}
