"""`/v1/reruns` and `/v1/batches/{id}/failed_inputs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.ids import DEFAULT_TENANT, format_batch_id, new_id
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.finalize import Finalizer
from tests.dead_letters.letters import batch_of_lines, bury, custom_ids, source_lines
from tests.worker.workers import Sink, WaitingPublisher

if TYPE_CHECKING:
    from lowtide.core.ids import TenantId
    from tests.http.conftest import Api
    from tests.worlds import World

UNKNOWN = f"batch_{'0' * 32}"


def _batch(api: Api, world: World, tenant: TenantId = DEFAULT_TENANT, *, ends: bool = True) -> str:
    """Return a batch whose requests 2 and 3 are dead letters."""
    store = ObstoreObjects(f"file://{api.objects}")
    batch = batch_of_lines(world, store, source_lines(4), tenant)
    bury(world, batch, (2, 3))
    if ends:
        publisher = WaitingPublisher(Sink(), world.outbox)
        Finalizer(world.finals, JoinedObjects(store), publisher, new_id=new_id).finalize(batch)
    return format_batch_id(batch)


def _rerun(api: Api, body: Any, **headers: str) -> Any:
    return api("POST", "/v1/reruns", json=body, headers=headers)


def test_rerun_creates_batch(api: Api, world: World) -> None:
    source = _batch(api, world)
    dry = _rerun(api, {"batch_id": source, "dry_run": True}).json
    assert dry == {
        "object": "rerun",
        "dry_run": True,
        "source_batch_id": source,
        "batch_id": None,
        "requests": 2,
    }
    answer = _rerun(api, {"batch_id": source, "completion_window": "2h"}).json
    assert answer == dry | {"dry_run": False, "batch_id": answer["batch_id"]}
    batch = api("GET", f"/v1/batches/{answer['batch_id']}").json
    assert (batch["completion_window"], batch["metadata"]) == ("2h", {"rerun_of": source})
    content = api("GET", f"/v1/files/{batch['input_file_id']}/content").data
    assert custom_ids(content) == ["2", "3"]


def test_retry_with_key_returns_first_batch(api: Api, world: World) -> None:
    source, key = _batch(api, world), {"Idempotency-Key": "k"}
    first = _rerun(api, {"batch_id": source}, **key).json
    outcomes = ["Cancelled", "Failed", "Expired"]
    assert _rerun(api, {"batch_id": source, "outcomes": outcomes}, **key).json == first
    assert _rerun(api, {"batch_id": source, "outcomes": ["Failed"]}, **key).status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"batch_id": "x"}, 400),
        ({"batch_id": UNKNOWN}, 404),
        ({"batch_id": UNKNOWN, "outcomes": []}, 400),
        ({"batch_id": UNKNOWN, "outcomes": ["Completed"]}, 400),
        ({"batch_id": UNKNOWN, "outcome": "Failed"}, 400),
        ({"batch_id": UNKNOWN, "completion_window": "1s"}, 400),
    ],
)
def test_invalid_rerun_is_refused(api: Api, body: Any, status: int) -> None:
    response = _rerun(api, body)
    assert (response.status_code, set(response.json)) == (status, {"error"})


@pytest.mark.parametrize("dry_run", [True, False])
def test_running_batch_is_not_rerun(api: Api, world: World, *, dry_run: bool) -> None:
    source = _batch(api, world, ends=False)
    response = _rerun(api, {"batch_id": source, "dry_run": dry_run})
    assert (response.status_code, response.json["error"]["code"]) == (409, "batch_not_ended")


def test_failed_inputs_are_streamed(api: Api, world: World) -> None:
    path = f"/v1/batches/{_batch(api, world)}/failed_inputs"
    response = api("GET", path)
    assert response.mimetype == "application/x-ndjson"
    assert custom_ids(response.data) == ["2", "3"]
    assert custom_ids(api("GET", f"{path}?outcome=Failed&outcome=Expired").data) == ["2", "3"]
    assert api("GET", f"{path}?outcome=Expired").data == b""
    assert api("HEAD", path).status_code == 200
    refused = api("GET", f"{path}?outcome=Completed")
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "outcome")


def test_tenants_are_isolated(api: Api, world: World) -> None:
    other = _batch(api, world, world.tenant("other"))
    for response in (
        _rerun(api, {"batch_id": other}),
        _rerun(api, {"batch_id": other, "dry_run": True}),
        api("GET", f"/v1/batches/{other}/failed_inputs"),
    ):
        assert response.status_code == 404
