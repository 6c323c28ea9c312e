"""A cell's heartbeat, and the tenant of a key, as its front asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from lowtide.cells.model import Report
from lowtide.core.pools import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.http.conftest import Api
    from tests.worlds import World

TOKEN = "token-of-all-cells"


@pytest.fixture
def cell(api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    """The API as the one of cell 7."""
    api.override(monkeypatch, "read", cell=7, cells_token=SecretStr(TOKEN))
    return api


@pytest.fixture(autouse=True)
def _resumed(world: World) -> Iterator[None]:
    yield
    with world.database.engine("operator").begin() as connection:
        connection.execute(text("DELETE FROM paused_pools"))
    with world.database.engine("worker").begin() as connection:
        connection.execute(text("DELETE FROM pool_samples"))


def heartbeat(api: Api) -> Report:
    answer = api("GET", "/v1/cell", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    return msgspec.json.decode(answer.data, type=Report)


def test_heartbeat_needs_the_token(cell: Api, world: World) -> None:  # noqa: ARG001
    assert cell("GET", "/v1/cell").status_code == 401
    for token in ("", "Bearer", f"Bearer {TOKEN}x", TOKEN):
        assert cell("GET", "/v1/cell", headers={"Authorization": token}).status_code == 401


@pytest.mark.parametrize("settings", [{"cell": 7}, {"cells_token": SecretStr(TOKEN)}])
def test_installation_that_is_no_cell_has_no_heartbeat(
    api: Api, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    api.override(monkeypatch, "read", **settings)
    answer = api("GET", "/v1/cell", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "unknown_url")


def test_idle_cell_quotes_dedicated_capacity_and_the_price_of_spot(
    cell: Api,
    world: World,  # noqa: ARG001
) -> None:
    report = heartbeat(cell)
    assert report.cell == 7
    (quote,) = report.quotes
    settings = cell.app().settings
    assert list(quote.models) == ["*"]
    assert quote.fleet == "default"
    assert (quote.unfinished, quote.spot_workers, quote.dedicated_workers) == (0, 0, 0)
    assert quote.interruptions == 0
    rate = cell.app().services.fleets.get("default").dedicated.rate  # type: ignore[union-attr]
    assert quote.price == pytest.approx(settings.spot_price / 3600 / rate)
    assert quote.wait == pytest.approx(settings.cold_start)


def test_work_makes_the_wait_longer_and_interruptions_the_price(
    cell: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (idle,) = heartbeat(cell).quotes
    world.batch(40)
    with world.database.engine("worker").begin() as connection:
        connection.execute(
            text("""INSERT INTO pool_samples (at, fleet, pool, queued, running, oldest_age, desired,
            live, seconds, done, interrupted, replica_seconds)
            VALUES (now(), 'default', 'spot', 0, 0, 0, 2, 2, 10, 5, 3, 1800)""")
        )
    monkeypatch.setattr(cell.app().services.forecaster, "_cache", None)
    (busy,) = heartbeat(cell).quotes
    assert busy.unfinished == 40
    assert busy.interruptions == pytest.approx(6.0)
    assert busy.wait is not None
    assert idle.wait is not None
    assert busy.wait > idle.wait
    assert busy.price > idle.price


def test_cell_whose_pools_are_paused_has_no_capacity(
    cell: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.database.engine("operator").begin() as connection:
        for pool in Pool:
            connection.execute(
                text("INSERT INTO paused_pools VALUES (:pool, now(), 'Ada')"), {"pool": pool.value}
            )
    monkeypatch.setattr(cell.app().services.forecaster, "_cache", None)
    (quote,) = heartbeat(cell).quotes
    assert (quote.wait, quote.seconds) == (None, float("inf"))


def test_fleet_of_spot_alone_that_is_scaled_to_zero_has_capacity(
    cell: Api,
    world: World,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else all work would go to cells with a worker."""
    cell.override(monkeypatch, "read", cell=7, cells_token=SecretStr(TOKEN), dedicated_replicas=0)
    (quote,) = heartbeat(cell).quotes
    assert quote.wait == pytest.approx(cell.app().settings.cold_start)


def test_tenant_of_a_key_is_told_whatever_its_scopes(cell: Api, world: World) -> None:  # noqa: ARG001
    assert cell("GET", "/v1/cell/tenant").json == {"tenant": "default"}
    refused = cell("GET", "/v1/cell/tenant", headers={"Authorization": "Bearer lt_unknown"})
    assert refused.status_code == 401


def test_installation_that_is_no_cell_tells_no_tenant(api: Api) -> None:
    answer = api("GET", "/v1/cell/tenant")
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "unknown_url")
