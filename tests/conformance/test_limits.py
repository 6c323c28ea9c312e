"""Limits of a tenant: calls per minute, active batches and queued requests."""

from __future__ import annotations

import json
import re
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.conformance.features import Area, proves
from tests.conformance.lines import CHAT, held, jsonl, requests
from tests.conformance.server import AsyncOfficial, Server, SyncOfficial
from tests.conformance.shapes import check_batch, check_error
from tests.e2e.command import lowtide
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conformance.server import Official, Own

    Limited = Callable[..., Server]

RATE = "Rate limits: 429, `Retry-After`, `x-ratelimit-*`; the client waits and asks again"
BATCHES = "Limits of active batches and of queued requests: 429 that names limit and use"
DURATION = re.compile(r"([0-9]+h)?([0-9]+m)?[0-9.]+m?s")
_numbers = count(1)


@pytest.fixture
def limited(server: Server, own: Own) -> Iterator[Limited]:
    """Create a tenant with limits by the command line; return the server with a key of it."""
    servers: list[Server] = []
    # Limits are those of a cell: the tenant lives in one.
    data = ("--data-dir", str(own.stack.installations[0].data_dir), "--json")

    def make(**limits: int) -> Server:
        name = f"limited-{next(_numbers)}"
        options = [
            part
            for limit, value in limits.items()
            for part in (f"--{limit.replace('_', '-')}", str(value))
        ]
        lowtide("tenants", "create", name, *options, *data)
        key = json.loads(lowtide("keys", "create", name, *data).stdout)["key"]
        servers.append(Server(server.base_url, key, own))
        return servers[-1]

    yield make
    for each in servers:
        each.close()


@proves(Area.ERRORS, RATE)
def test_unlimited_tenant_has_no_rate_limit_headers(server: Server) -> None:
    headers = server.http.get("/v1/batches").headers
    assert [name for name in headers if name.startswith("x-ratelimit")] == []


@proves(Area.ERRORS, RATE)
def test_calls_over_rate_limit_return_429(limited: Limited) -> None:
    http = limited(requests_per_minute=3).http
    answers = [
        http.get("/v1/batches"),
        http.get("/v1/batches/odd"),
        http.post("/v1/files", json={}),
        http.get("/v1/models"),
        http.post("/v1/batches", json={}),
        http.delete("/v1/files/odd"),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 415, 429, 429, 429]
    for answer, remaining in zip(answers, (2, 1, 0, 0, 0, 0), strict=True):
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(remaining)
        assert DURATION.fullmatch(answer.headers["x-ratelimit-reset-requests"])
        assert ("Retry-After" in answer.headers) == (answer.status_code == 429)
    refused = answers[-1]
    assert check_error(refused.json())["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["Retry-After"]) <= 20


@proves(Area.ERRORS, RATE)
@pytest.mark.parametrize("kind", [SyncOfficial, AsyncOfficial], ids=["sync", "async"])
def test_rate_limit_raises_client_exception(
    limited: Limited, kind: Callable[[Server], Official]
) -> None:
    official = kind(limited(requests_per_minute=1))
    official(lambda client: client.batches.list())
    with pytest.raises(openai.RateLimitError) as refused:
        official(lambda client: client.batches.list())
    official.close()
    assert refused.value.code == "rate_limit_exceeded"


@proves(Area.ERRORS, RATE)
@pytest.mark.parametrize("kind", [SyncOfficial, AsyncOfficial], ids=["sync", "async"])
def test_client_waits_and_retries(limited: Limited, kind: Callable[[Server], Official]) -> None:
    official = kind(limited(requests_per_minute=30))
    began = monotonic()
    for _ in range(31):
        official(lambda client: client.with_options(max_retries=3).batches.list())
    official.close()
    assert monotonic() - began >= 1


@proves(Area.ERRORS, BATCHES)
def test_active_batches_are_limited(limited: Limited, own: Own) -> None:
    tenant = limited(active_batches=1)
    first = tenant.create(jsonl(*held("active", 1)), headers={"Idempotency-Key": "first"})
    body = {
        "input_file_id": first["input_file_id"],
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    refused = tenant.http.post("/v1/batches", json=body)
    assert refused.status_code == 429
    assert "1 batches are active; the limit is 1" in check_error(refused.json())["message"]
    assert int(refused.headers["Retry-After"]) >= 1
    retried = tenant.http.post("/v1/batches", json=body, headers={"Idempotency-Key": "first"})
    assert retried.json()["id"] == first["id"]
    own.engine.release("active")
    tenant.finish(first)
    tenant.finish(tenant.create(requests(1)))


@proves(Area.ERRORS, BATCHES)
def test_file_over_queue_limit_is_refused(limited: Limited) -> None:
    tenant = limited(queued_requests=5)
    tenant.finish(tenant.create(requests(5)))
    too_many = {"input_file_id": tenant.upload(requests(6))["id"], "endpoint": CHAT}
    refused = tenant.http.post("/v1/batches", json=too_many)
    assert refused.status_code == 400
    assert check_error(refused.json())["code"] == "too_many_lines"


@proves(Area.ERRORS, BATCHES)
def test_changed_limit_takes_effect_at_once(limited: Limited, own: Own) -> None:
    tenant = limited(requests_per_minute=1)
    assert tenant.http.get("/v1/files").status_code == 200
    assert tenant.http.get("/v1/files").status_code == 429
    name = f"limited-{next(_numbers) - 1}"
    data = ("--data-dir", str(own.stack.installations[0].data_dir))
    lowtide("tenants", "set", name, "--requests-per-minute", "none", *data)
    assert tenant.http.get("/v1/files").status_code == 200
    lowtide("keys", "revoke", name, *data)
    assert tenant.http.get("/v1/files").status_code == 401


@proves(
    Area.BEYOND,
    "`x_lowtide` on each batch: when it will probably be done (`eta`), and its `cost` by pool",
)
def test_eta_is_given_while_batch_runs(server: Server, own: Own) -> None:
    batch = server.create(jsonl(*held("eta", 2)))
    assert batch["x_lowtide"]["eta"] is None

    def eta() -> Any:
        return server.batch(batch["id"])["x_lowtide"]["eta"]

    until(lambda: eta() is not None, "an eta, once workers run")
    assert batch["created_at"] <= eta() < batch["expires_at"]
    own.engine.release("eta")
    ended = server.finish(batch)
    check_batch(ended)
    assert ended["x_lowtide"]["eta"] is None


@proves(
    Area.BEYOND,
    "`x_lowtide` on each batch: when it will probably be done (`eta`), and its `cost` by pool",
)
def test_cost_is_given_by_pool(server: Server) -> None:
    ended = server.finish(server.create(requests(20)))
    cost = ended["x_lowtide"]["cost"]
    assert cost["currency"] == "spot-hours"
    assert cost["spot"] > 0
    assert cost["total"] == pytest.approx(cost["spot"] + cost["dedicated"])
    assert cost["all_dedicated"] == pytest.approx(3 * cost["spot"] + cost["dedicated"], rel=0.01)


@proves(
    Area.BEYOND,
    "`x_lowtide.sla_state` is `At risk` from the start if dedicated capacity cannot meet the deadline",
)
def test_new_batch_without_dedicated_capacity_is_at_risk(server: Server, own: Own) -> None:
    assert own.stack.settings["LOWTIDE_DEDICATED_REPLICAS"] == "0"
    assert server.create(requests(1))["x_lowtide"]["sla_state"] == "At risk"


@proves(
    Area.BEYOND,
    "`usage`: use of the tenant's limits, cost and tokens this month, paused pools",
)
def test_usage_counts_results_of_this_month(server: Server) -> None:
    before = server.json("/v1/usage")["month"]
    ended = server.finish(server.create(requests(3)))
    usage = server.json("/v1/usage")
    assert usage["object"] == "usage"
    assert usage["month"]["requests"] >= before["requests"] + 3
    currency = ended["x_lowtide"]["cost"]["currency"]
    assert currency in [cost["currency"] for cost in usage["month"]["costs"]]
    quotas = ("enqueued_tokens", "tokens_per_day", "spend_per_month")
    for name in ("active_batches", "unfinished_requests", "running_requests", *quotas):
        assert usage[name]["used"] >= 0
    assert all(set(pause) == {"pool", "since"} for pause in usage["paused_pools"])
