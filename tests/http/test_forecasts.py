"""A batch's ETA, cost and SLA state over HTTP."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id, parse_batch_id
from lowtide.core.pools import Pool
from lowtide.settings import Admission
from tests.http.forms import line, upload
from tests.worlds import World, done, eventually

if TYPE_CHECKING:
    from tests.http.conftest import Api


def _start_batch(api: Api, world: World, requests: int, window: str = "24h") -> tuple[str, BatchId]:
    content = b"".join(line(str(number)) for number in range(requests))
    body = {"input_file_id": upload(api, content)["id"], "completion_window": window}
    id_: str = api("POST", "/v1/batches", json=body).json["id"]
    batch = parse_batch_id(id_)
    assert batch is not None
    assert world.split(batch, requests)
    return id_, batch


def test_cost_is_reported_by_pool(api: Api, world: World) -> None:
    id_, batch = _start_batch(api, world, 2)
    with world.worker.begin() as connection:
        for pool, seconds in (("spot", 1800), ("dedicated", 600)):
            connection.execute(
                text(
                    "INSERT INTO tallies (batch_id, pool, lease_id, tenant_id, replica_seconds) "
                    "VALUES (:batch, :pool, :lease, :tenant, :seconds)"
                ),
                {
                    "batch": batch,
                    "pool": pool,
                    "lease": new_id(),
                    "tenant": DEFAULT_TENANT,
                    "seconds": seconds,
                },
            )
    assert api("GET", f"/v1/batches/{id_}").json["x_lowtide"]["cost"] == {
        "currency": "spot-hours",
        "spot": 0.5,
        "dedicated": 0.5,
        "total": 1.0,
        "all_dedicated": 2.0,
    }


def test_running_batch_has_eta(api: Api, world: World) -> None:
    id_, _ = _start_batch(api, world, 40)
    began = time.time()
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 30)
    world.queue.settle(lease, [done(claim) for claim in claims], [])

    # 10 requests, one worker, 2 a second (LOWTIDE_DEDICATED_RATE), and each takes 16 s at full load,
    # as far as is known from 30 that took none. Forecasts are cached for 2 s.
    def eta_with_worker() -> int | None:
        eta: int = api("GET", f"/v1/batches/{id_}").json["x_lowtide"]["eta"]
        return eta if eta <= time.time() + 12 else None

    eta = eventually(eta_with_worker)
    assert eta is not None
    assert int(began) + 5 <= eta
    (listed,) = api("GET", "/v1/batches").json["data"]
    assert listed["x_lowtide"]["eta"] == eta


@pytest.mark.parametrize(
    ("window", "state"), [("24h", "On track"), ("10m", "On track"), ("2m", "At risk")]
)
def test_new_batch_reports_sla_state(api: Api, window: str, state: str) -> None:
    body = {"input_file_id": upload(api)["id"], "completion_window": window}
    batch = api("POST", "/v1/batches", json=body).json
    assert batch["x_lowtide"]["sla_state"] == state
    assert batch["x_lowtide"]["eta"] is None


@pytest.fixture
def _strict(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strict admission."""
    api.override(monkeypatch, "create_batch", admission=Admission.STRICT)


@pytest.mark.usefixtures("_strict")
def test_strict_admission_names_feasible_window(api: Api) -> None:
    body = {"input_file_id": upload(api)["id"], "completion_window": "2m"}
    rejected = api("POST", "/v1/batches", json=body)
    assert rejected.status_code == 409
    assert rejected.headers["x-should-retry"] == "false"
    error = rejected.json["error"]
    assert (error["param"], error["code"]) == ("completion_window", "deadline_not_feasible")
    window = re.search(r"a completion window of ([0-9]+m)", error["message"])
    assert window is not None
    accepted = api("POST", "/v1/batches", json=body | {"completion_window": window[1]})
    assert (accepted.status_code, accepted.json["x_lowtide"]["sla_state"]) == (200, "On track")
