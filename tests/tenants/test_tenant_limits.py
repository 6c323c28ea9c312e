"""Tenant limits under concurrent calls."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from lowtide.batches.model import NewBatch
from lowtide.core.errors import InvalidRequest, TooManyRequests
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId, TenantId, new_id
from lowtide.core.pools import Pool
from lowtide.events.model import EventType, batch_event
from lowtide.tenants.callers import Authenticator, Caller
from lowtide.tenants.keys import hash_key
from tests.conftest import PEPPER
from tests.days import within_a_day
from tests.worlds import PRICES, World, done, together

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = "lt_limited"
HEADER = f"Bearer {KEY}"


def _tenant(world: World, **limits: int) -> TenantId:
    tenant = world.tenant("limited")
    _limit(world, tenant, **limits)
    with world.database.engine("owner").begin() as connection:
        connection.execute(
            text("INSERT INTO api_keys (hash, tenant_id, name) VALUES (:hash, :tenant, 'k')"),
            {"hash": hash_key(KEY, PEPPER), "tenant": tenant},
        )
    return tenant


def _limit(world: World, tenant: TenantId, **limits: int) -> None:
    with world.database.engine("operator").begin() as connection:
        for name, value in limits.items():
            connection.execute(
                text(f"UPDATE tenants SET max_{name} = :value WHERE id = :id"),  # noqa: S608
                {"value": value, "id": tenant},
            )


def _age_buckets(world: World, seconds: float) -> None:
    """Make the buckets older by so many seconds."""
    with world.database.engine("owner").begin() as connection:
        connection.execute(
            text("UPDATE request_rates SET at = at - make_interval(secs => :seconds)"),
            {"seconds": seconds},
        )


def _authenticator(world: World) -> Authenticator:
    return Authenticator(world.api, pepper=PEPPER, anonymous="limited")


def _accepted(callers: Sequence[Caller]) -> int:
    return sum(caller.allowance is None or caller.allowance.accepted for caller in callers)


def test_unlimited_tenant_is_not_counted(world: World) -> None:
    _tenant(world)
    assert _authenticator(world).caller(HEADER).allowance is None
    with world.database.engine("operator").begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM request_rates")).scalar_one() == 0


@pytest.mark.parametrize("header", [HEADER, None], ids=["key", "anonymous"])
def test_requests_pass_up_to_limit(world: World, header: str | None) -> None:
    _tenant(world, requests_per_minute=3)
    authenticator = _authenticator(world)
    allowances = [authenticator.caller(header).allowance for _ in range(5)]
    assert [each.accepted for each in allowances if each] == [True, True, True, False, False]
    assert [each.remaining for each in allowances if each] == [2, 1, 0, 0, 0]
    assert all(each.per_minute == 3 for each in allowances if each)
    last = allowances[-1]
    assert last is not None
    assert 15 < last.retry_after <= 20
    assert 55 < last.reset <= 60


def test_used_allowance_leaks_away(world: World) -> None:
    # One request leaks in ten seconds, so that a slow machine leaks none.
    _tenant(world, requests_per_minute=6)
    authenticator = _authenticator(world)
    assert _accepted([authenticator.caller(HEADER) for _ in range(7)]) == 6
    _age_buckets(world, 20)
    assert _accepted([authenticator.caller(HEADER) for _ in range(4)]) == 2
    _age_buckets(world, 3600)
    assert _accepted([authenticator.caller(HEADER) for _ in range(7)]) == 6


def test_concurrent_processes_share_one_limit(world: World) -> None:
    _tenant(world, requests_per_minute=20)
    began = time.monotonic()

    def ask() -> list[Caller]:
        authenticator = Authenticator(world.own_engine("api"), pepper=PEPPER, anonymous=None)
        return [authenticator.caller(HEADER) for _ in range(10)]

    passed = sum(_accepted(callers) for callers in together(*[ask] * 8))
    leaked = int((time.monotonic() - began) * 20 / 60)
    assert 20 <= passed <= 20 + leaked + 1


def test_each_tenant_has_its_own_bucket(world: World) -> None:
    _tenant(world, requests_per_minute=1)
    authenticator = _authenticator(world)
    assert _accepted([authenticator.caller(HEADER) for _ in range(3)]) == 1
    assert authenticator.caller("Bearer lt_test").allowance is None


def test_new_limit_takes_effect_at_once(world: World) -> None:
    tenant = _tenant(world, requests_per_minute=10)
    authenticator = _authenticator(world)
    assert _accepted([authenticator.caller(HEADER) for _ in range(5)]) == 5
    _limit(world, tenant, requests_per_minute=6)
    assert _accepted([authenticator.caller(HEADER) for _ in range(5)]) == 1


def test_wrong_key_uses_no_allowance(world: World) -> None:
    _tenant(world, requests_per_minute=1)
    with world.api.begin() as connection:
        rows = connection.execute(text("SELECT * FROM authenticate('wrong')")).all()
    assert rows == []
    assert _accepted([_authenticator(world).caller(HEADER)]) == 1


def _new_batch(tenant: TenantId, file: FileId, key: str | None = None) -> NewBatch:
    now = datetime.now(UTC)
    return NewBatch(
        id=BatchId(new_id()), tenant=tenant, user="me", input_file=file,
        endpoint="/v1/embeddings", completion_window="1h", created_at=now,
        deadline=now + timedelta(hours=1), metadata=None, prices=PRICES,
        idempotency_key=key,
    )  # fmt: skip


def _create(world: World, tenant: TenantId, lines: int = 1, key: str | None = None) -> BatchId:
    """Create a batch of requests of 40 bytes, which count as ten tokens each."""
    new = _new_batch(tenant, world.file(tenant, lines=lines, size=40 * lines).id, key)
    event = batch_event(new_id(), EventType.BATCH_CREATED, tenant, new.id)
    return world.batches.create(new, event)[0].id


def _outcome(call: Any) -> str:
    try:
        call()
    except TooManyRequests as error:
        return error.reason
    return "created"


def test_active_batches_are_limited(world: World) -> None:
    tenant = _tenant(world, active_batches=2)
    first = _create(world, tenant)
    _create(world, tenant)
    with pytest.raises(TooManyRequests, match="2 batches are active; the limit is 2"):
        _create(world, tenant)
    world.cancel(first, tenant)
    with pytest.raises(TooManyRequests, match="2 batches are active"):
        _create(world, tenant)
    world.run("UPDATE batches SET status = 'cancelled' WHERE id = :id", id=first)
    _create(world, tenant)
    world.batch(1)


def test_queued_requests_are_limited(world: World) -> None:
    tenant = _tenant(world, queued_lines=100)
    first = _create(world, tenant, 60)
    with pytest.raises(TooManyRequests, match="60 requests are queued and the file has 41"):
        _create(world, tenant, 41)
    assert world.split(first, 60)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 5)
    with pytest.raises(TooManyRequests, match="60 requests are queued"):
        _create(world, tenant, 41)
    world.queue.settle(lease, [done(claim) for claim in claims], [])
    _create(world, tenant, 45)
    with pytest.raises(TooManyRequests, match="100 requests are queued"):
        _create(world, tenant, 1)
    world.cancel(first, tenant)
    _create(world, tenant, 55)


def test_file_over_limit_is_invalid_request(world: World) -> None:
    tenant = _tenant(world, queued_lines=100)
    with pytest.raises(InvalidRequest, match="101 requests"):
        _create(world, tenant, 101)


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [
        pytest.param({"active_batches": 3}, 3, id="active batches"),
        pytest.param({"queued_lines": 25}, 2, id="queued requests"),
        pytest.param({"enqueued_tokens": 799}, 7, id="enqueued tokens"),
    ],
)
def test_concurrent_creations_do_not_exceed_limit(
    world: World, limits: dict[str, int], accepted: int
) -> None:
    tenant = _tenant(world, **limits)
    outcomes = together(*[partial(_outcome, partial(_create, world, tenant, 10))] * 20)
    assert outcomes.count("created") == accepted


def test_creations_of_unlimited_tenant_do_not_wait(world: World) -> None:
    with world.own_engine("api").begin() as connection:
        connection.execute(
            text("SELECT set_config('lowtide.tenant', :tenant, true)"),
            {"tenant": str(DEFAULT_TENANT)},
        )
        assert connection.execute(text("SELECT * FROM lock_batch_limits()")).all() == []
        _create(world, DEFAULT_TENANT)


def test_enqueued_tokens_are_limited(world: World) -> None:
    """They are those of the input, whatever part of it has a result, and outlive the file."""
    tenant = _tenant(world, enqueued_tokens=1000)
    first = _create(world, tenant, 60)
    with pytest.raises(
        TooManyRequests, match="About 600 tokens are enqueued and the file has about 410"
    ):
        _create(world, tenant, 41)
    assert world.split(first, 60)
    world.run("DELETE FROM files")
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 10)
    with pytest.raises(TooManyRequests, match="About 600 tokens"):
        _create(world, tenant, 41)
    world.queue.settle(lease, [done(claim) for claim in claims], [])
    _create(world, tenant, 50)
    with pytest.raises(TooManyRequests, match="About 1,000 tokens"):
        _create(world, tenant, 1)
    world.cancel(first, tenant)
    _create(world, tenant, 50)


def test_file_over_token_limit_is_invalid_request(world: World) -> None:
    tenant = _tenant(world, enqueued_tokens=1000)
    with pytest.raises(InvalidRequest, match="about 1,010 tokens, but at most 1,000") as refused:
        _create(world, tenant, 101)
    assert (refused.value.param, refused.value.code) == ("input_file_id", "token_limit_exceeded")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        pytest.param({"tokens_per_day": 80}, "80 tokens were used today", id="tokens"),
        pytest.param({"spend_per_month": 10}, "10.00 was spent this month", id="spend"),
    ],
)
def test_used_up_quota_refuses_batches_until_its_period_ends(
    world: World, limits: dict[str, int], message: str
) -> None:
    within_a_day(10)
    tenant = _tenant(world, **limits)
    batch = _create(world, tenant, 10)
    assert world.split(batch, 10)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    results = [
        replace(done(claim), replica_seconds=3600.0)
        for claim in world.queue.claim(lease, Pool.SPOT, 10)
    ]
    world.queue.settle(lease, results[:9], [])
    _create(world, tenant)
    world.queue.settle(lease, results[9:], [])
    with pytest.raises(TooManyRequests, match=message) as refused:
        _create(world, tenant)
    assert refused.value.reason == next(iter(limits))
    assert 0 < refused.value.retry_after <= (86_400 if "tokens" in message else 31 * 86_400)
    world.run("UPDATE usage_days SET day = day - 31")
    _create(world, tenant)


@pytest.mark.parametrize("limits", [{"active_batches": 1}, {"queued_lines": 1}])
def test_idempotent_retry_is_not_limited(world: World, limits: dict[str, int]) -> None:
    tenant = _tenant(world, **limits)
    first = _create(world, tenant, key="once")
    assert _create(world, tenant, key="once") == first
    with pytest.raises(TooManyRequests):
        _create(world, tenant, key="another")


def test_concurrent_idempotent_calls_create_one_batch(world: World) -> None:
    tenant = _tenant(world, active_batches=1)
    ids = together(*[partial(_create, world, tenant, key="once")] * 4)
    assert len(set(ids)) == 1
