"""The commands `lowtide tenants`, `lowtide keys` and `lowtide pools`."""

from __future__ import annotations

import json
from getpass import getuser
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.tenants.callers import Authenticator
from lowtide.tenants.keys import new_key
from tests.cli.conftest import Command
from tests.conftest import PEPPER
from tests.worlds import World

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Database

UNLIMITED = {
    "weight": 1,
    "requests_per_minute": None,
    "active_batches": None,
    "queued_requests": None,
    "running_requests": None,
    "enqueued_tokens": None,
    "tokens_per_day": None,
    "spend_per_month": None,
    "batch_retention": None,
    "zero_retention": False,
}


@pytest.fixture(autouse=True)
def _operator(lowtide: Command) -> None:
    """Every test runs as an operator."""


_run = Command("")
_json = _run.json


def _without_id(tenant: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tenant.items() if name not in {"id", "created_at"}}


def test_tenant_is_created_and_changed() -> None:
    created = _json("tenants", "create", "acme", "--weight", "2", "--active-batches", "3")
    assert _without_id(created) == UNLIMITED | {"name": "acme", "weight": 2, "active_batches": 3}
    arguments = ("--requests-per-minute", "60", "--active-batches", "none", "--zero-retention")
    changed = _json("tenants", "set", "acme", *arguments)
    expected = UNLIMITED | {
        "name": "acme", "weight": 2, "requests_per_minute": 60, "zero_retention": True
    }  # fmt: skip
    assert _without_id(changed) == expected
    listed = {tenant["name"]: _without_id(tenant) for tenant in _json("tenants", "list")}
    assert listed == {"acme": expected, "default": UNLIMITED | {"name": "default"}}


def test_new_tenant_gets_limits_from_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_TENANT_REQUESTS_PER_MINUTE", "600")
    monkeypatch.setenv("LOWTIDE_TENANT_RUNNING_LINES", "50")
    created = _json("tenants", "create", "acme", "--running-requests", "none")
    assert _without_id(created) == UNLIMITED | {"name": "acme", "requests_per_minute": 600}


def test_list_prints_table_by_default() -> None:
    _run("tenants", "create", "acme", "--queued-requests", "70000")
    row, _ = _run.table("tenants", "list")
    assert row == {
        "tenant": "acme",
        "weight": "1",
        "requests per minute": "none",
        "active batches": "none",
        "queued requests": "70000",
        "running requests": "none",
        "enqueued tokens": "none",
        "tokens per day": "none",
        "spend per month": "none",
        "retention": "none",
        "zero retention": "off",
    }


def test_key_of_another_cell_opens_this_one_too(database: Database, tmp_path: Path) -> None:
    _run("tenants", "create", "acme")
    file = tmp_path / "key"
    file.write_text(new_key() + "\n")
    key = _run("keys", "create", "acme", "--key-file", str(file)).stdout.strip()
    assert key == file.read_text().strip()
    authenticator = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    assert authenticator.caller(f"Bearer {key}").name == "default"
    file.write_text("lt_guessed")
    refused = _run(
        "keys", "create", "acme", "--name", "other", "--key-file", str(file), exit_code=1
    )
    assert "no key of Lowtide's" in refused.output


def test_created_key_authenticates_and_can_be_revoked(database: Database) -> None:
    _run("tenants", "create", "acme")
    key = _run("keys", "create", "acme", "--name", "laptop").stdout.strip()
    authenticator = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    assert authenticator.caller(f"Bearer {key}").name == "laptop"
    listed = _run("keys", "list", "acme").stdout
    assert "laptop" in listed
    assert key not in listed
    assert _json("keys", "revoke", "acme", "--name", "laptop") == {
        "tenant": "acme",
        "name": "laptop",
        "revoked": True,
    }
    (revoked,) = _json("keys", "list", "acme")
    assert (revoked["name"], revoked["revoked_at"] is None) == ("laptop", False)


def test_rotation_without_key_names_command_that_creates_it() -> None:
    _run("tenants", "create", "acme")
    refused = _run("keys", "rotate", "acme", exit_code=1)
    assert "Tenant 'acme' has no active key 'default'" in refused.output
    assert "create one with `lowtide keys create acme`" in refused.output
    _run("keys", "create", "acme")
    assert _run("keys", "rotate", "acme").stdout.startswith("lt_")


def test_rotated_key_works_beside_new_key(database: Database) -> None:
    _run("tenants", "create", "acme")
    old = _run("keys", "create", "acme").stdout.strip()
    rotated = _json("keys", "rotate", "acme", "--overlap", "2h")
    assert rotated["old_until"] is not None
    authenticator = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    for key in (old, rotated["key"]):
        assert authenticator.caller(f"Bearer {key}").name == "default"
    listed = _json("keys", "list", "acme")
    assert [key["state"] for key in listed] == ["expiring", "active"]
    assert [key["prefix"] for key in listed] == [old[:9], rotated["key"][:9]]
    assert "expiring" in _run("keys", "list", "acme").stdout
    _run("keys", "revoke", "acme", "--id", listed[0]["id"])
    assert [key["state"] for key in _json("keys", "list", "acme")] == ["revoked", "active"]
    assert _run("keys", "rotate", "acme", "--overlap", "0").stdout.startswith("lt_")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("tenants", "set", "nobody"), 1, "Tenant 'nobody' not found"),
        (("tenants", "create", "default"), 1, "Tenant 'default' already exists"),
        (("tenants", "create", "No Name"), 1, "Invalid name 'No Name'"),
        (("tenants", "set", "default", "--running-requests", "0"), 2, "'none' for no limit"),
        (("tenants", "set", "default", "--running-requests", "many"), 2, "'none' for no limit"),
        (("tenants", "set", "default", "--weight", "0"), 2, "--weight"),
        (("keys", "create", "nobody"), 1, "Tenant 'nobody' not found"),
        (("pools", "pause", "gpu"), 2, "'gpu' is not one of"),
        (("keys", "revoke", "default", "--name", "x"), 1, "its active keys are default"),
        (("keys", "revoke", "default", "--id", "x"), 2, "lowtide keys list"),
        (("keys", "rotate", "default", "--overlap", "31d"), 1, "Invalid overlap '31d'"),
    ],
)
def test_invalid_arguments_are_reported(
    arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    result = _run(*arguments, exit_code=exit_code)
    assert message in result.output


def test_pool_is_paused_and_resumed() -> None:
    paused = _json("pools", "pause", "spot")
    assert paused["pool"] == "spot"
    by, since = paused["paused"]["by"], paused["paused"]["since"]
    assert by.endswith(" (cli)")
    again = _run("pools", "pause", "spot").stdout
    assert f"by {by}" in again
    assert "0 requests queued, 0 still running." in again
    assert "The other pool is paused" in _run("pools", "pause", "dedicated").stdout
    spot, dedicated = _json("pools", "list")
    assert spot == {
        "fleet": "default",
        "pool": "spot",
        "queued": 0,
        "running": 0,
        "workers": 0,
        "paused": {"since": since, "by": by},
    }
    assert dedicated["paused"] is not None
    assert f"UTC by {getuser()} (cli)" in _run("pools", "list").stdout
    assert _json("pools", "resume", "spot")["was_paused"] == {"since": since, "by": by}
    assert "Spot was not paused." in _run("pools", "resume", "spot").stdout
    assert _json("pools", "list")[0]["paused"] is None


def test_missing_database_url_selects_local_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("LOWTIDE_DATABASE_URL")
    result = _run("tenants", "list", "--data-dir", str(tmp_path), exit_code=1)
    assert "No local stack is running" in result.output


def test_unknown_setting_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_TENANT_WEIGHT", "1")
    assert "LOWTIDE_TENANT_WEIGHT" in _run("tenants", "list", exit_code=1).output


def test_key_has_scopes_and_an_end() -> None:
    scopes = ("--scope", "batches:read", "--scope", "files:read")
    created = _json("keys", "create", "default", "--name", "reader", *scopes, "--expires-in", "7d")
    assert created["scopes"] == ["files:read", "batches:read"]
    (listed,) = (key for key in _json("keys", "list", "default") if key["name"] == "reader")
    assert (listed["scopes"], listed["state"]) == (["files:read", "batches:read"], "expiring")
    for option, value, message in (
        ("--scope", "all", "Unknown scope 'all'"),
        ("--expires-in", "soon", "Invalid expiry 'soon'"),
    ):
        refused = _run("keys", "create", "default", option, value, exit_code=1)
        assert message in refused.stderr


def test_audit_log_is_exported(database: Database) -> None:
    _json("keys", "create", "default", "--name", "audited")
    with World(database)._superuser.begin() as connection:
        connection.execute(text("UPDATE audit_log SET at = at - interval '2 minutes'"))
    exported = _run("audit", "export", "--since", "1h").stdout
    entries = [json.loads(line) for line in exported.splitlines()]
    assert entries[-1]["action"] == "key.created"
    assert entries[-1]["actor"] == f"{getuser()} (cli)"
    assert _run("audit", "export", "--after", str(entries[-1]["id"])).stdout == ""
    refused = _run("audit", "export", "--since", "yesterday", exit_code=2)
    assert "use a span such as 24h" in refused.stderr


def test_server_without_the_required_tls_is_explained(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWTIDE_DATABASE_URL", f"{database.url('operator')}?sslmode=require")
    assert "?sslmode=disable" in _run("tenants", "list", exit_code=1).stderr.replace("\n", " ")
