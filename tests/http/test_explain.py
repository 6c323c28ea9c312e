"""A batch's explanation over HTTP, and as the CLI prints it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lowtide.cli.explain import rows_of
from lowtide.core.ids import new_id
from lowtide.core.pools import Pool
from tests.http.forms import upload
from tests.worlds import World, done, eventually

if TYPE_CHECKING:
    from tests.http.conftest import Api


def test_running_batch_is_explained(api: Api, world: World) -> None:
    batch = world.batch(40)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 30)
    world.queue.settle(lease, [done(claim) for claim in claims[:20]], [])
    answer = api("GET", f"/v1/batches/batch_{batch.hex}/explain")
    assert answer.status_code == 200
    body = answer.json
    assert body["id"] == f"batch_{batch.hex}"
    assert body["limiting"]["factor"] == "pool_bound"
    assert body["limiting"]["text"] == "1 spot worker is busy, of 4 wanted"
    assert (body["waiting"], body["running"]) == (10, 10)
    end = body["expected_end"]
    assert time.time() - 1 <= end["low"] <= end["likely"] <= end["high"]
    assert [name for name, _ in rows_of(body)][:3] == ["limiting", "expected end", "rate"]


def test_eta_is_the_likely_end(api: Api, world: World) -> None:
    batch = world.batch(40)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.queue.claim(lease, Pool.SPOT, 10)
    address = f"/v1/batches/batch_{batch.hex}"

    # The ETA's workload may be 2 s old, and be that of an empty database.
    def is_the_same() -> bool:
        likely: int = api("GET", f"{address}/explain").json["expected_end"]["likely"]
        eta: int = api("GET", address).json["x_lowtide"]["eta"]
        return abs(eta - likely) <= 1

    assert eventually(is_the_same)


def test_batch_that_validates_has_no_expected_end(api: Api) -> None:
    created = api("POST", "/v1/batches", json={"input_file_id": upload(api)["id"]}).json
    body = api("GET", f"/v1/batches/{created['id']}/explain").json
    assert body["limiting"]["factor"] == "validating"
    assert body["expected_end"] is None
    assert body["advice"] == []


def test_batch_of_another_tenant_is_not_found(api: Api, world: World) -> None:
    batch = world.batch(1, tenant=world.tenant("other"))
    assert api("GET", f"/v1/batches/batch_{batch.hex}/explain").status_code == 404
    assert api("GET", f"/v1/batches/batch_{new_id().hex}/explain").status_code == 404
    assert api("GET", "/v1/batches/nonsense/explain").status_code == 404
