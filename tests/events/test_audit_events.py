"""Each entry of the audit log is an event: of its transaction, and out of its writer's reach."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.database.connections import acting_for
from lowtide.events.model import EventType
from lowtide.events.outbox import AUDIT_DUE, AUDIT_GIVEN_UP, AuditOutbox
from lowtide.events.publisher import BACKLOG, Publisher
from lowtide.scheduler.pauses import PauseStore
from lowtide.tenants.audit import AuditLog, note
from tests.plans import plan_nodes
from tests.worker.workers import Sink

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.worlds import World


def _note(world: World, *subjects: str) -> None:
    with acting_for(world.api, DEFAULT_TENANT) as connection:
        note(connection, DEFAULT_TENANT, "laptop (api key 1)", "files.create", subjects)


def _waiting(world: World) -> int:
    return int(world.value("SELECT count(*) FROM audit_outbox"))


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
        waiting = connection.execute(
            text("SELECT count(created_at) FROM audit_outbox")
        ).scalar_one()
        connection.rollback()
    assert (waiting, _waiting(world)) == (1, 0)


def test_accepted_event_is_forgotten(world: World) -> None:
    """Also one of the whole installation; events of batches stay where they are."""
    world.new_batch()
    _note(world, "file-1")
    PauseStore(world.database.engine("operator")).pause(Pool.SPOT, "ana")
    outbox = AuditOutbox(world.worker)
    due = outbox.due(10)
    assert [event.type for event in due] == [EventType.AUDIT] * 2
    assert outbox.due(10) == [], "until their next attempt"
    for event in due:
        outbox.forget(event)
    assert _waiting(world) == 0
    assert world.value("SELECT type FROM outbox") == EventType.BATCH_CREATED


def test_events_that_nobody_takes_for_a_day_are_given_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """All of them, however few a hanging sink leaves room for."""
    _note(world, *map(str, range(300)))
    world.run("UPDATE audit_outbox SET created_at = created_at - interval '1 day'")
    _note(world, "new")
    (event,) = AuditOutbox(world.worker).due(8)
    assert event.data["subject"] == "new"
    assert _waiting(world) == 1
    (record,) = [one for one in caplog.records if one.message == "audit_events.given_up"]
    assert record.events == 300  # type: ignore[attr-defined]


def test_backlog_of_events_is_sent_in_one_go(world: World) -> None:
    _note(world, *map(str, range(2 * BACKLOG + 5)))
    sink = Sink()
    publisher = Publisher(sink, AuditOutbox(world.worker))
    publisher.resend()
    assert publisher.drain(60)
    assert _waiting(world) == 0


@pytest.mark.parametrize("role", ["api", "operator"])
@pytest.mark.parametrize("statement", ["SELECT data FROM audit_outbox", "DELETE FROM audit_outbox"])
def test_who_writes_an_entry_cannot_read_or_remove_its_event(
    world: World, role: str, statement: str
) -> None:
    _note(world, "file-1")
    with acting_for(world.database.engine(role), DEFAULT_TENANT) as connection:
        with pytest.raises(DBAPIError, match="permission denied"):
            connection.execute(text(statement))
        connection.rollback()
    assert _waiting(world) == 1


def test_tables_of_the_writer_do_not_stand_in_for_those_of_the_trigger(world: World) -> None:
    with acting_for(world.api, DEFAULT_TENANT) as connection:
        for table in (
            "audit_outbox (tenant_id uuid, action text, data jsonb)",
            "tenants (id uuid, name text)",
        ):
            connection.execute(text(f"CREATE TEMP TABLE {table} ON COMMIT DROP"))
        note(connection, DEFAULT_TENANT, "laptop (api key 1)", "files.create", ["file-1"])
    (event,) = AuditOutbox(world.worker).due(10)
    assert (event.data["tenant"], event.data["subject"]) == ("default", "file-1")


@pytest.mark.parametrize(
    ("statement", "index"),
    [(AUDIT_DUE, "audit_outbox_due"), (AUDIT_GIVEN_UP, "audit_outbox_oldest")],
    ids=["due", "given up"],
)
def test_events_are_found_by_index(world: World, statement: str, index: str) -> None:
    _note(world, *map(str, range(5000)))
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE audit_outbox"))
    values = {"limit": 10, "base": 10.0, "most": 300.0, "kept": 86_400.0}
    bound = {name: value for name, value in values.items() if f":{name}" in statement}
    nodes = plan_nodes(world.worker, statement, **bound)
    assert index in {node.get("Index Name") for node in nodes}
    assert "Seq Scan" not in {node["Node Type"] for node in nodes}
