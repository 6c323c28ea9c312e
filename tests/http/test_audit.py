"""Audit log entries of API calls, and the actor that they name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, format_batch_id, parse_batch_id
from lowtide.core.pools import Pool
from lowtide.objects.store import ObstoreObjects
from tests.dead_letters.letters import batch_of_lines, bury, source_lines
from tests.http.forms import upload
from tests.worlds import done

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from tests.http.conftest import Api
    from tests.worlds import World

ACTOR = re.compile(r"default \(api key [0-9a-f]{8}\)")


def _audit(world: World) -> list[tuple[str, str]]:
    """Return actions and subjects; check that the key is the actor of all."""
    with world.database.engine("operator").begin() as connection:
        rows = connection.execute(text("SELECT * FROM audit_log ORDER BY id")).all()
    assert {row.tenant_id for row in rows} <= {DEFAULT_TENANT}
    assert all(ACTOR.fullmatch(row.actor) for row in rows), [row.actor for row in rows]
    return [(row.action, row.subject) for row in rows]


def _create_batch(api: Api, file: str) -> dict[str, Any]:
    headers = {"Idempotency-Key": "once"}
    batch: dict[str, Any] = api(
        "POST", "/v1/batches", json={"input_file_id": file}, headers=headers
    ).json
    return batch


def _settle_two(world: World, name: str) -> BatchId:
    batch = parse_batch_id(name)
    assert batch is not None
    assert world.split(batch, 3)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.queue.settle(lease, [done(claim) for claim in world.queue.claim(lease, Pool.SPOT, 2)], [])
    return batch


def test_file_and_batch_calls_are_audited(api: Api, world: World) -> None:
    file = upload(api)["id"]
    batch = _create_batch(api, file)["id"]
    assert _create_batch(api, file)["id"] == batch, "a retry creates nothing"
    _settle_two(world, batch)
    assert api("GET", f"/v1/batches/{batch}").status_code == 200
    assert api("HEAD", f"/v1/files/{file}/content").status_code == 200
    assert api("GET", f"/v1/files/{file}/content").status_code == 200
    results = api("GET", f"/v1/batches/{batch}/results")
    assert len(results.text.splitlines()) == 2
    cursor = results.headers["x-lowtide-cursor"]
    api("GET", f"/v1/batches/{batch}/results?after={cursor}")
    assert api("DELETE", f"/v1/files/{file}").status_code == 200
    for _ in range(2):
        assert api("POST", f"/v1/batches/{batch}/cancel").status_code == 200
    unused = upload(api)["id"]
    assert api("DELETE", f"/v1/files/{unused}").status_code == 200
    assert _audit(world) == [
        ("files.create", file),
        ("batches.create", batch),
        ("files.download", file),
        ("batches.download", f"{batch}: 2 results"),
        ("files.delete", file),
        ("batches.cancel", batch),
        ("files.create", unused),
        ("files.delete", unused),
    ]


def test_dead_letter_calls_are_audited(api: Api, world: World) -> None:
    store = ObstoreObjects(f"file://{api.objects}")
    batch = batch_of_lines(world, store, source_lines(4))
    bury(world, batch, (1, 2))
    path, name = "/v1/dead_letters", format_batch_id(batch)
    assert api("GET", f"{path}/content?batch_id={name}").status_code == 200
    letters = [letter["id"] for letter in api("GET", path).json["data"]]
    (requeued,) = api("POST", f"{path}/requeue", json={"ids": letters[:1]}).json["batches"]
    assert api("POST", f"{path}/discard", json={"ids": letters[1:]}).json["changed"] == 1
    assert _audit(world) == [
        ("dead_letters.download", f"input: batch_id={name}"),
        ("dead_letters.requeue", f"{name}: 1 requests as {requeued['batch_id']} on spot"),
        ("dead_letters.discard", f"{name}: 1 requests"),
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/v1/files/{'file-' + '0' * 32}/content"),
        ("DELETE", f"/v1/files/{'file-' + '0' * 32}"),
        ("POST", f"/v1/batches/batch_{'0' * 32}/cancel"),
    ],
)
def test_failed_calls_are_not_audited(api: Api, world: World, method: str, path: str) -> None:
    assert api(method, path).status_code == 404
    assert _audit(world) == []
