"""The cost of a batch that two fleets of different prices run, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from lowtide.core.ids import DEFAULT_TENANT, new_id, parse_batch_id
from lowtide.core.pools import Pool
from lowtide.events.publisher import Publisher
from lowtide.files.lines import Limits
from lowtide.fleets.parsing import parse
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.split import Splitter
from lowtide.queue.store import QueueStore
from lowtide.settings import Settings
from lowtide.tenants.store import TenantUsageStore
from tests.http.forms import line, upload
from tests.worker.workers import Sink
from tests.worlds import done

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.http.conftest import Api
    from tests.worlds import World

FLEETS = """\
fleets:
  large: {models: [llama-70b], spot: {price: 5}, dedicated: {price: 10}}
  small: {models: [llama-8b], spot: {price: 1}, dedicated: {price: 3}}
"""
HOUR = 3600.0
# Two hours of large's dedicated, one of small's spot.
MIXED = {
    "currency": "EUR",
    "spot": 1.0,
    "dedicated": 20.0,
    "total": 21.0,
    "all_dedicated": 23.0,
}


def _declare(api: Api, patch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    path.write_text(text)
    for function in api.clients:
        api.override(patch, function, fleets=str(path), currency="EUR")


def _create(api: Api, *models: str) -> Any:
    lines = [line(str(n), "/v1/embeddings", model=model) for n, model in enumerate(models)]
    file = upload(api, b"".join(lines))["id"]
    return api("POST", "/v1/batches", json={"input_file_id": file}).json


def _split(api: Api, world: World, batch: str, fleets: str) -> None:
    id_ = parse_batch_id(batch)
    assert id_ is not None
    objects = JoinedObjects(ObstoreObjects(f"file://{api.objects}"))
    declared = parse(fleets, Settings()).fleets
    publisher = Publisher(Sink(), world.outbox)
    Splitter(world.splits, objects, Limits(), declared, publisher, currency="EUR").split(id_)


def _run(world: World, fleet: str, pool: Pool) -> None:
    """Run the requests of a fleet, each for an hour of one replica."""
    queue = QueueStore(world.worker, new_id=new_id, lease_duration=30.0, fleet=fleet)
    lease = queue.open_lease(pool, "w")
    claims = queue.claim(lease, pool, 9)
    queue.settle(lease, [replace(done(claim), replica_seconds=HOUR) for claim in claims], [])


def test_each_part_costs_what_its_own_fleet_does(
    api: Api, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _declare(api, monkeypatch, tmp_path / "fleets.yaml", FLEETS)
    batch = _create(api, "llama-70b", "llama-8b", "llama-70b")["id"]
    _split(api, world, batch, FLEETS.replace("price: ", "price: 8"))
    world.run("UPDATE queued_runs SET pool = 'dedicated' WHERE fleet = 'large'")
    _run(world, "large", Pool.DEDICATED)
    _run(world, "small", Pool.SPOT)
    _declare(api, monkeypatch, tmp_path / "new.yaml", FLEETS.replace("price: ", "price: 9"))
    assert api("GET", f"/v1/batches/{batch}").json["x_lowtide"]["cost"] == MIXED
    (listed,) = api("GET", "/v1/batches").json["data"]
    assert listed["x_lowtide"]["cost"] == MIXED
    assert api("GET", "/v1/usage").json["month"]["costs"] == [MIXED]
    uses = TenantUsageStore(world.database.engine("operator"))
    (use,) = uses.page("default", "EUR", after=None, limit=1)
    assert (use.tenant.id, use.cost) == (DEFAULT_TENANT, 21.0)


def test_batch_that_another_fleet_runs_by_its_split_costs_what_that_does(
    api: Api, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _declare(api, monkeypatch, tmp_path / "fleets.yaml", FLEETS)
    batch = _create(api, "llama-8b")["id"]
    moved = FLEETS.replace("llama-8b", "x").replace("llama-70b", "llama-8b")
    _split(api, world, batch, moved)
    _run(world, "large", Pool.SPOT)
    cost = api("GET", f"/v1/batches/{batch}").json["x_lowtide"]["cost"]
    assert (cost["spot"], cost["all_dedicated"]) == (5.0, 10.0)


def test_batch_costs_what_its_fleet_did_when_it_was_created(
    api: Api, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _declare(api, monkeypatch, tmp_path / "fleets.yaml", FLEETS)
    batch = _create(api, "llama-8b")["id"]
    _split(api, world, batch, FLEETS.replace("price: ", "price: 8"))
    _run(world, "small", Pool.SPOT)
    cost = api("GET", f"/v1/batches/{batch}").json["x_lowtide"]["cost"]
    assert (cost["spot"], cost["all_dedicated"]) == (1.0, 3.0)
