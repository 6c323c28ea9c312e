"""Operators list, show, cancel and rerun batches and dead letters of any tenant."""

from __future__ import annotations

from getpass import getuser
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from sqlalchemy import text

from lowtide.cli import output
from lowtide.cli.main import _show_status
from lowtide.core.ids import (
    DEFAULT_TENANT,
    BatchId,
    format_batch_id,
    format_request_id,
    new_id,
    parse_batch_id,
)
from lowtide.local.state import ProcessStatus, Status
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.finalize import Finalizer
from tests.dead_letters.letters import batch_of_lines, bury, source_lines
from tests.worker.workers import Sink, WaitingPublisher
from tests.worlds import World

if TYPE_CHECKING:
    from lowtide.core.ids import TenantId
    from tests.cli.conftest import Command
    from tests.conftest import Database


class Tenants:
    """Batches of the tenants `default` and `acme`."""

    def __init__(self, database: Database, objects: str) -> None:
        self.world = World(database)
        self.store = ObstoreObjects(objects)
        self.acme = self.world.tenant("acme")

    def running(self, tenant: TenantId, user: str = "ada") -> BatchId:
        return batch_of_lines(self.world, self.store, source_lines(3), tenant, user=user)

    def ended(self, tenant: TenantId) -> BatchId:
        """Return a batch whose requests 2 and 3 are dead letters."""
        batch = self.running(tenant)
        self.end(batch)
        return batch

    def end(self, batch: BatchId) -> None:
        """Run the requests of a batch and end it; requests 2 and 3 become dead letters."""
        bury(self.world, batch, (2, 3))
        publisher = WaitingPublisher(Sink(), self.world.outbox)
        Finalizer(self.world.finals, JoinedObjects(self.store), publisher, new_id=new_id).finalize(
            batch
        )

    def actors(self) -> set[tuple[str, str]]:
        """Return the actors and actions in the audit log."""
        with self.world.database.engine("operator").begin() as connection:
            rows = connection.execute(text("SELECT actor, action FROM audit_log"))
            return {(row.actor.split(" ")[0], row.action) for row in rows}


@pytest.fixture
def tenants(database: Database, lowtide: Command) -> Tenants:
    """Two tenants without batches."""
    return Tenants(database, lowtide.objects)


def _names(*batches: BatchId) -> list[str]:
    return [format_batch_id(batch) for batch in batches]


def test_batches_of_one_tenant_or_of_all_are_listed(lowtide: Command, tenants: Tenants) -> None:
    ours, theirs = tenants.running(DEFAULT_TENANT), tenants.running(tenants.acme)
    rows = lowtide.table("batches", "list", "--all-tenants")
    assert [(row["id"], row["tenant"]) for row in rows] == [
        (format_batch_id(theirs), "acme"),
        (format_batch_id(ours), "default"),
    ]
    assert [row["id"] for row in lowtide.table("batches", "list", "--tenant", "acme")] == _names(
        theirs
    )
    (batch,) = lowtide.json("batches", "list", "--tenant", "default")["data"]
    assert (batch["id"], batch["tenant"], batch["object"]) == (*_names(ours), "default", "batch")


def test_list_is_filtered_and_paged(lowtide: Command, tenants: Tenants) -> None:
    batches = [tenants.running(tenants.acme, user) for user in ("ada", "bob", "Adam")]
    tenants.world.cancel(batches[0], tenants.acme)

    def listed(*options: str) -> list[str]:
        return [row["id"] for row in lowtide.table("batches", "list", "--all-tenants", *options)]

    assert listed("--user", "ada") == _names(batches[2], batches[0])
    assert listed("--status", "cancelling") == _names(batches[0])
    first = lowtide("batches", "list", "--all-tenants", "--limit", "2")
    assert f"--after {format_batch_id(batches[1])}" in first.stderr
    assert listed("--limit", "2", "--after", format_batch_id(batches[1])) == _names(batches[0])


def test_batch_is_shown(lowtide: Command, tenants: Tenants) -> None:
    batch = format_batch_id(tenants.ended(tenants.acme))
    (facts,) = lowtide.table("show", batch, "--all-tenants")
    expected = {
        "id": batch,
        "tenant": "acme",
        "user": "ada",
        "status": "completed",
        "sla": "Met",
        "requests": "3",
        "completed": "1",
        "failed": "2",
        "window": "24h",
    }
    assert {name: facts[name] for name in expected} == expected
    assert lowtide.json("show", batch, "--tenant", "acme")["tenant"] == "acme"


def test_batches_are_cancelled_one_by_one(lowtide: Command, tenants: Tenants) -> None:
    running = tenants.running(DEFAULT_TENANT), tenants.running(tenants.acme)
    ended = tenants.ended(tenants.acme)
    names = _names(running[0], ended, running[1])
    result = lowtide("cancel", *names, "--all-tenants", exit_code=1)
    assert result.stdout.splitlines() == [
        f"{names[0]} is cancelling",
        f"{names[2]} is cancelling",
    ]
    assert f"{names[1]} is completed and cannot be cancelled" in result.stderr
    assert [tenants.world.row(batch).status for batch in running] == ["cancelling"] * 2
    assert (getuser(), "batches.cancel") in tenants.actors()
    # A command without a broker says nothing about that of the functions.
    assert tenants.world.rows("SELECT * FROM last_seen") == []


@pytest.mark.parametrize(
    "command", [("show",), ("cancel",), ("retry-failed",), ("retry-failed", "--dry-run")]
)
def test_tenant_option_protects_other_tenants(
    lowtide: Command, tenants: Tenants, command: tuple[str, ...]
) -> None:
    batch = tenants.running(tenants.acme)
    before = tenants.world.contents()
    name = format_batch_id(batch)
    result = lowtide(*command, name, "--tenant", "default", exit_code=1)
    assert f"{name} is not a batch of 'default'" in result.stderr
    assert tenants.world.contents() == before


def test_failed_requests_run_again(lowtide: Command, tenants: Tenants) -> None:
    source = tenants.ended(tenants.acme)
    name = format_batch_id(source)
    dry = lowtide("retry-failed", name, "--tenant", "acme", "--dry-run").stdout
    assert dry == f"2 requests of {name} would run again\n"
    result = lowtide("retry-failed", name, "--tenant", "acme", "--window", "2h")
    new = parse_batch_id(result.stdout.strip())
    assert new is not None
    row = tenants.world.row(new)
    assert (row.tenant_id, row.completion_window) == (tenants.acme, "2h")
    assert (getuser(), "batches.rerun") in tenants.actors()
    none = lowtide("retry-failed", name, "--all-tenants", "--outcome", "expired", exit_code=1)
    assert f"{name} has no expired requests." in none.stderr


def test_dead_letters_of_all_tenants_are_listed(lowtide: Command, tenants: Tenants) -> None:
    ours, theirs = tenants.ended(DEFAULT_TENANT), tenants.ended(tenants.acme)
    rows = lowtide.table("dead-letters", "list", "--all-tenants", "--state", "open")
    expected = [
        (ours, "default", 2),
        (ours, "default", 3),
        (theirs, "acme", 2),
        (theirs, "acme", 3),
    ]
    assert sorted((row["id"], row["tenant"]) for row in rows) == [
        (format_request_id(batch, line), tenant) for batch, tenant, line in expected
    ]
    first = lowtide("dead-letters", "list", "--tenant", "acme", "--limit", "1")
    assert f"--after {format_request_id(theirs, 3)}" in first.stderr
    after = ("--limit", "1", "--after", format_request_id(theirs, 3))
    (row,) = lowtide.table("dead-letters", "list", "--tenant", "acme", *after)
    assert row["id"] == format_request_id(theirs, 2)
    (row,) = lowtide.table("dead-letters", "list", "--all-tenants", *after)
    assert row["id"] == format_request_id(theirs, 2)


def _states(tenants: Tenants) -> dict[str, int]:
    rows = tenants.world.rows("SELECT state, count(*) AS n FROM dead_letters GROUP BY state")
    return {row.state: row.n for row in rows}


def test_dead_letters_of_all_tenants_are_requeued(lowtide: Command, tenants: Tenants) -> None:
    tenants.ended(DEFAULT_TENANT), tenants.ended(tenants.acme)
    dry = lowtide("dead-letters", "requeue", "--all", "--all-tenants", "--dry-run").stdout
    assert "4 dead letters would be requeued." in dry
    assert _states(tenants) == {"open": 4}
    result = lowtide.json("dead-letters", "requeue", "--all", "--all-tenants", "--yes")
    assert (result["changed"], result["unchanged"], result["remaining"]) == (4, 0, 0)
    assert {batch["tenant"] for batch in result["batches"]} == {"default", "acme"}
    assert _states(tenants) == {"requeued": 4}
    assert (getuser(), "dead_letters.requeue") in tenants.actors()


def test_dead_letters_are_discarded_by_id(lowtide: Command, tenants: Tenants) -> None:
    ours, theirs = tenants.ended(DEFAULT_TENANT), tenants.ended(tenants.acme)
    ids = [format_request_id(batch, 2) for batch in (ours, theirs)]
    refused = lowtide("dead-letters", "discard", *ids, "--tenant", "acme", "--yes", exit_code=1)
    assert "is not a batch of 'acme'" in refused.stderr
    assert _states(tenants) == {"open": 4}
    asked = lowtide("dead-letters", "discard", *ids, "--all-tenants", stdin="y\n")
    assert "Discard 2 dead letters?" in asked.output
    assert _states(tenants) == {"open": 2, "discarded": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tenant", "nobody"), "Tenant 'nobody' not found"),
        (("--tenant", "acme", "--all-tenants"), "either --tenant or --all-tenants"),
    ],
)
def test_invalid_choice_of_tenants_is_refused(
    lowtide: Command, tenants: Tenants, options: tuple[str, ...], message: str
) -> None:
    del tenants
    for command in (("batches", "list"), ("dead-letters", "list"), ("show", "batch_1")):
        assert message in lowtide(*command, *options, exit_code=1).stderr


def _status() -> None:
    process = ProcessStatus(
        name="create-batch",
        pid=12_345,
        created=0.0,
        port=8080,
        health_port=None,
        state="ready",
        restarts=0,
    )
    stack = Status(
        base_url="http://127.0.0.1:8080", portal_url="http://127.0.0.1:8090", data_dir="/", pid=1,
        created=0.0, ready=True, processes=[process], api_key="lt_" + "k" * 43,
    )  # fmt: skip
    _show_status(stack, as_json=False)


def test_every_table_has_whole_ids_at_80_columns(
    lowtide: Command, tenants: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = "a-tenant-with-a-long-name"
    lowtide("tenants", "create", tenant)
    lowtide("keys", "create", tenant, "--name", "a-key-with-a-long-name")
    id_ = tenants.world.value("SELECT id FROM tenants WHERE name = :name", name=tenant)
    batch = tenants.ended(id_)
    (key,) = lowtide.json("keys", "list", tenant)
    name, letter = format_batch_id(batch), format_request_id(batch, 3)
    tables: dict[tuple[str, ...], list[str]] = {
        ("batches", "list", "--all-tenants"): [name],
        ("show", name, "--all-tenants"): [name, "file-"],
        ("dead-letters", "list", "--all-tenants"): [letter],
        ("keys", "list", tenant): [key["id"]],
        ("tenants", "list"): [tenant],
        ("pools", "list"): ["dedicated"],
    }
    printed = StringIO()
    console = Console(file=printed, force_terminal=True, width=80, no_color=True)
    monkeypatch.setattr(output, "OUT", console)
    for command, ids in tables.items():
        lowtide(*command)
        text_ = printed.getvalue()
        assert [each for each in ids if each not in text_] == [], text_
        printed.seek(0)
        printed.truncate()
    _status()
    assert "lt_" + "k" * 43 in printed.getvalue()
    assert "create-batch" in printed.getvalue()
