"""The commands `lowtide buckets`."""

from __future__ import annotations

from getpass import getuser
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.cli.conftest import Command

if TYPE_CHECKING:
    from tests.conftest import Database

URL = "s3://acme-prompts/in/"


@pytest.fixture(autouse=True)
def _operator(lowtide: Command) -> None:
    """Every test runs as an operator."""
    lowtide("tenants", "create", "acme")


_run = Command("")


def _add(*arguments: str, exit_code: int = 0) -> str:
    command = ("buckets", "add", *arguments, "--tenant", "acme")
    return str(_run(*command, exit_code=exit_code).output)


def test_bucket_is_added_listed_and_removed(database: Database) -> None:
    _add("s3://acme-prompts/in", "--read", "--credentials", "acme")
    _add("gs://acme-results", "--write")
    rows = _run.table("buckets", "list", "--tenant", "acme")
    shown = [(row["url"], row["read"], row["write"], row["credentials"]) for row in rows]
    assert shown == [
        ("gs://acme-results/", "no", "yes", "default"),
        (URL, "yes", "no", "acme"),
    ]
    (_, bucket) = _run.json("buckets", "list", "--tenant", "acme")
    actor = f"{getuser()} (cli)"
    assert bucket == {
        "url": URL, "may_read": True, "may_write": False, "credentials": "acme",
        "created_at": bucket["created_at"], "created_by": actor,
    }  # fmt: skip
    _run("buckets", "remove", URL, "--tenant", "acme")
    assert len(_run.table("buckets", "list", "--tenant", "acme")) == 1
    with database.engine("operator").begin() as connection:
        entries = connection.execute(
            text("SELECT actor, subject FROM audit_log WHERE action LIKE 'bucket.%' ORDER BY id")
        ).all()
    assert [tuple(entry) for entry in entries] == [
        (actor, f"{URL}: read with the credentials acme"),
        (actor, "gs://acme-results/: write with the credentials default"),
        (actor, URL),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((URL,), "Allow reading, writing or both"),
        (("s3://acme/../x", "--read"), "must be an s3://, gs:// or az:// URL"),
        (("file:///etc/", "--read"), "must be an s3://, gs:// or az:// URL"),
        ((URL, "--read", "--credentials", "a b"), "no name of credentials"),
        (("s3://own/", "--read"), "own object store"),
        (("s3://own/files/", "--read"), "own object store"),
    ],
)
def test_bucket_that_is_not_allowed_is_rejected(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("LOWTIDE_OBJECT_STORE_URL", "s3://own/files")
    output = _add(*arguments, exit_code=1)
    assert message in " ".join(output.split())
    assert _run.json("buckets", "list", "--tenant", "acme") == []


def test_bucket_is_registered_once() -> None:
    _add(URL, "--read")
    assert "already registered" in _add(URL, "--write", exit_code=1)


def test_unknown_names_are_reported() -> None:
    assert "not found" in _run("buckets", "list", "--tenant", "none", exit_code=1).output
    command = ("buckets", "remove", URL, "--tenant", "acme")
    assert "is not registered" in " ".join(_run(*command, exit_code=1).output.split())
