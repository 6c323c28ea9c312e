"""`lowtide tenants` and `lowtide keys`, on a database of their own."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from lowtide.cli.main import app
from lowtide.settings import PREFIX
from lowtide.tenants.callers import Authenticator
from tests.conftest import PEPPER

if TYPE_CHECKING:
    from typer.testing import Result

    from tests.conftest import Database

UNLIMITED = {
    "weight": 1,
    "requests_per_minute": None,
    "active_batches": None,
    "queued_lines": None,
    "running_lines": None,
}


@pytest.fixture(autouse=True)
def _operator(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith((PREFIX, "K_SINK", "DATA_DIR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOWTIDE_DATABASE_URL", database.url("operator"))
    monkeypatch.setenv("LOWTIDE_API_KEY_PEPPER", PEPPER)


def _run(*arguments: str, fails: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == fails, result.output
    return result


def _ask(*arguments: str) -> Any:
    return json.loads(_run(*arguments, "--json").stdout)


def _plain(tenant: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tenant.items() if name not in {"id", "created_at"}}


def test_a_tenant_is_created_and_changed() -> None:
    made = _ask("tenants", "create", "acme", "--weight", "2", "--active-batches", "3")
    assert _plain(made) == UNLIMITED | {"name": "acme", "weight": 2, "active_batches": 3}
    arguments = ("--requests-per-minute", "60", "--active-batches", "none")
    changed = _ask("tenants", "set", "acme", *arguments)
    wanted = UNLIMITED | {"name": "acme", "weight": 2, "requests_per_minute": 60}
    assert _plain(changed) == wanted
    found = {tenant["name"]: _plain(tenant) for tenant in _ask("tenants", "list")}
    assert found == {"acme": wanted, "default": UNLIMITED | {"name": "default"}}


def test_new_tenants_have_the_limits_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_TENANT_REQUESTS_PER_MINUTE", "600")
    monkeypatch.setenv("LOWTIDE_TENANT_RUNNING_LINES", "50")
    made = _ask("tenants", "create", "acme", "--running-lines", "none")
    assert _plain(made) == UNLIMITED | {"name": "acme", "requests_per_minute": 600}


def test_people_see_a_table() -> None:
    _run("tenants", "create", "acme", "--queued-lines", "70000")
    shown = _run("tenants", "list").stdout
    row = next(line for line in shown.splitlines() if "acme" in line)
    assert re.findall(r"\w+", row) == ["acme", "1", "none", "none", "70000", "none"]


def test_a_key_is_shown_once_and_works_until_it_is_revoked(database: Database) -> None:
    _run("tenants", "create", "acme")
    key = _run("keys", "create", "acme", "--name", "laptop").stdout.strip()
    tenants = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    assert tenants.caller(f"Bearer {key}").name == "laptop"
    listed = _run("keys", "list", "acme").stdout
    assert "laptop" in listed
    assert key not in listed
    assert _ask("keys", "revoke", "acme", "--name", "laptop") == {
        "tenant": "acme",
        "name": "laptop",
        "revoked": True,
    }
    (found,) = _ask("keys", "list", "acme")
    assert (found["name"], found["revoked_at"] is None) == ("laptop", False)


def test_a_rotated_key_works_beside_the_new_one(database: Database) -> None:
    _run("tenants", "create", "acme")
    old = _run("keys", "create", "acme").stdout.strip()
    rotated = _ask("keys", "rotate", "acme", "--overlap", "2h")
    assert rotated["old_until"] is not None
    tenants = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    for key in (old, rotated["key"]):
        assert tenants.caller(f"Bearer {key}").name == "default"
    listed = _ask("keys", "list", "acme")
    assert [key["state"] for key in listed] == ["expiring", "active"]
    assert [key["prefix"] for key in listed] == [old[:9], rotated["key"][:9]]
    assert "expiring" in _run("keys", "list", "acme").stdout
    _run("keys", "revoke", "acme", "--id", listed[0]["id"])
    assert [key["state"] for key in _ask("keys", "list", "acme")] == ["revoked", "active"]
    assert _run("keys", "rotate", "acme", "--overlap", "0").stdout.startswith("lt_")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("tenants", "set", "nobody"), 1, "Tenant 'nobody' not found"),
        (("tenants", "create", "default"), 1, "Tenant 'default' already exists"),
        (("tenants", "create", "No Name"), 1, "Invalid name 'No Name'"),
        (("tenants", "set", "default", "--running-lines", "0"), 2, "'none' for no limit"),
        (("tenants", "set", "default", "--running-lines", "many"), 2, "'none' for no limit"),
        (("tenants", "set", "default", "--weight", "0"), 2, "--weight"),
        (("keys", "create", "nobody"), 1, "Tenant 'nobody' not found"),
        (("pools", "pause", "gpu"), 2, "'gpu' is not one of"),
        (("keys", "revoke", "default", "--name", "x"), 1, "has no active key 'x'"),
        (("keys", "revoke", "default", "--id", "x"), 2, "lowtide keys list"),
        (("keys", "rotate", "default", "--overlap", "31d"), 1, "Invalid overlap '31d'"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], status: int, message: str) -> None:
    result = _run(*arguments, fails=status)
    assert message in result.output


def test_a_pool_is_paused_and_resumed() -> None:
    paused = _ask("pools", "pause", "spot")
    assert paused["pool"] == "spot"
    by, since = paused["paused"]["by"], paused["paused"]["since"]
    assert by.startswith("operator ")
    again = _run("pools", "pause", "spot").stdout
    assert f"by {by}" in again
    assert "0 requests queued, 0 still running." in again
    assert "The other pool is paused" in _run("pools", "pause", "dedicated").stdout
    spot, dedicated = _ask("pools", "list")
    assert spot == {
        "pool": "spot",
        "waiting": 0,
        "running": 0,
        "workers": 0,
        "paused": {"since": since, "by": by},
    }
    assert dedicated["paused"] is not None
    assert "UTC by operator" in _run("pools", "list").stdout
    assert _ask("pools", "resume", "spot")["was_paused"] == {"since": since, "by": by}
    assert "Spot was not paused." in _run("pools", "resume", "spot").stdout
    assert _ask("pools", "list")[0]["paused"] is None


def test_without_a_database_the_local_stack_is_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("LOWTIDE_DATABASE_URL")
    result = _run("tenants", "list", "--data-dir", str(tmp_path), fails=1)
    assert "No local stack is running" in result.output


def test_a_typing_error_in_a_setting_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWTIDE_TENANT_WEIGHT", "1")
    assert "LOWTIDE_TENANT_WEIGHT" in _run("tenants", "list", fails=1).output
