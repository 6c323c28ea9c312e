"""`GET /v1/usage`, and `lowtide usage` on it."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from typer.testing import CliRunner
from werkzeug.serving import make_server

from lowtide.cli.main import app
from lowtide.core.pools import Pool
from tests.conftest import API_KEY
from tests.days import within_a_day
from tests.worlds import done

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.http.conftest import Api
    from tests.worlds import World


@pytest.fixture(autouse=True)
def _unlimited(world: World) -> Iterator[None]:
    yield
    with world.database.engine("operator").begin() as connection:
        connection.execute(
            text("UPDATE tenants SET max_active_batches = NULL, max_requests_per_minute = NULL")
        )
        connection.execute(text("DELETE FROM paused_pools"))


@pytest.fixture
def used(world: World) -> World:
    """The tenant `default` with a limit, a batch of eight requests with a cost, a paused pool."""
    within_a_day(20)
    world.batch(8)
    with world.database.engine("operator").begin() as connection:
        connection.execute(text("UPDATE tenants SET max_active_batches = 3"))
        connection.execute(text("INSERT INTO paused_pools VALUES ('dedicated', now(), 'Ada')"))
    world.run("UPDATE batches SET spot_price = 1, dedicated_price = 4, currency = 'EUR'")
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 2)
    world.queue.settle(
        lease, [replace(done(claim), replica_seconds=18_000.0) for claim in claims], []
    )
    return world


def test_usage_has_limits_cost_and_pauses(api: Api, used: World) -> None:
    body = api("GET", "/v1/usage").json
    (paused,) = body.pop("paused_pools")
    assert paused["pool"] == "dedicated"
    assert paused["fleet"] == "default"
    assert set(paused) == {"fleet", "pool", "since"}
    since = used.value("SELECT extract(epoch FROM date_trunc('month', now(), 'UTC'))::bigint")
    assert body == {
        "object": "usage",
        "tenant": "default",
        "requests_per_minute": {"used": None, "limit": None},
        "active_batches": {"used": 1, "limit": 3},
        "unfinished_requests": {"used": 6, "limit": None},
        "running_requests": {"used": 0, "limit": None},
        "enqueued_tokens": {"used": 3, "limit": None},
        "tokens_per_day": {"used": 16, "limit": None},
        "spend_per_month": {"used": 10.0, "limit": None},
        "month": {
            "since": since, "requests": 2, "input_tokens": 6, "output_tokens": 10,
            "costs": [{
                "currency": "EUR", "spot": 10.0, "dedicated": 0.0, "total": 10.0,
                "all_dedicated": 40.0,
            }],
        },
    }  # fmt: skip


@pytest.mark.usefixtures("used")
def test_command_names_the_fleet_of_a_paused_pool(api: Api, world: World) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(
            text(
                "INSERT INTO paused_pools (fleet, pool, paused_by) VALUES ('large', 'spot', 'Ada')"
            )
        )
    with _served(api) as url:
        shown = CliRunner().invoke(app, ["usage", "--url", url, "--key", API_KEY]).output
    assert ", spot of large since 20" in shown


def test_usage_counts_its_own_call_against_the_rate_limit(api: Api, world: World) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(text("UPDATE tenants SET max_requests_per_minute = 60"))
    assert api("GET", "/v1/usage").json["requests_per_minute"] == {"used": 1, "limit": 60}


@contextmanager
def _served(api: Api) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, api.clients["read"].application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.usefixtures("used")
def test_command_prints_usage(api: Api) -> None:
    with _served(api) as url:
        options = ["usage", "--url", url, "--key", API_KEY]
        shown = CliRunner().invoke(app, options).output
        body = CliRunner().invoke(app, [*options, "--json"]).output
    names, values = (line.split("\t") for line in shown.splitlines())
    facts = dict(zip(names, values, strict=True))
    assert facts["active batches"] == "1 of 3"
    assert facts["unfinished requests"] == "6, no limit"
    assert facts["requests per minute"] == "no limit"
    assert facts["cost"] == "10 EUR (spot 10, dedicated 0; all on dedicated: 40)"
    assert facts["paused"].startswith("dedicated since 20")
    assert "Ada" not in shown
    assert json.loads(body)["tenant"] == "default"
