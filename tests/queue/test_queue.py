"""The queue on a real server: claims, settlements, fencing and releases."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from lowtide.batches.model import BatchStatus
from lowtide.core.ids import DEFAULT_TENANT, LeaseId
from lowtide.core.pools import Pool
from lowtide.engines.outcomes import Usage
from lowtide.queue.claims import Claim, Finished, Returned
from tests.worlds import PATIENCE, World, done, numbers, together

if TYPE_CHECKING:
    from collections.abc import Sequence


def _returned(
    claim: Claim, *, failed: bool = False, interrupted: bool = False, delay: float = 0.0
) -> Returned:
    return Returned(claim.batch, claim.line, "why", delay, failed=failed, interrupted=interrupted)


def test_earliest_deadline_is_claimed_first(world: World) -> None:
    late = world.batch(3, due_in=3000)
    early = world.batch(3, due_in=1000)
    middle = world.batch(3, due_in=2000)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = [claim for _ in range(3) for claim in world.queue.claim(lease, Pool.SPOT, 3)]
    assert [(claim.batch, claim.line) for claim in claims] == [
        (batch, line) for batch in (early, middle, late) for line in (1, 2, 3)
    ]


def test_claim_carries_checksum(world: World) -> None:
    batch = world.batch(2)
    world.run("UPDATE requests SET checksum = -7 WHERE line = 2")
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 5)
    assert [(claim.batch, claim.line, claim.checksum) for claim in claims] == [
        (batch, 1, None),
        (batch, 2, -7),
    ]


def test_claim_carries_input_position_and_deadline(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    row = world.row(batch)
    claims = world.queue.claim(lease, Pool.SPOT, 5)
    assert all(86_000 < claim.due_in <= 86_400 for claim in claims)
    assert [replace(claim, waited=0.0, due_in=math.inf) for claim in claims] == [
        Claim(
            batch,
            "/v1/embeddings",
            row.input_key,
            line,
            line * 100,
            90,
            0,
            0,
            tenant=DEFAULT_TENANT,
            model="m",
        )
        for line in (1, 2)
    ]
    assert all(0 < claim.waited < PATIENCE for claim in claims)
    assert world.lines("queue", batch) == []
    assert world.lines("claims", batch) == [1, 2]
    assert world.queue.claim(lease, Pool.SPOT, 5) == []


def test_pool_claims_only_its_own_requests(world: World) -> None:
    spot, dedicated = world.batch(1), world.batch(1, pool="dedicated")
    for pool, batch in ((Pool.DEDICATED, dedicated), (Pool.SPOT, spot)):
        lease = world.queue.open_lease(pool, "w")
        assert [claim.batch for claim in world.queue.claim(lease, pool, 5)] == [batch]


def test_delayed_requests_are_not_claimed(world: World) -> None:
    batch = world.batch(3)
    world.split_runs()
    world.run("UPDATE queued_runs SET available_at = now() + interval '1 h' WHERE line = 1")
    world.run("UPDATE queued_runs SET available_at = now() - interval '1 s' WHERE line = 2")
    lease = world.queue.open_lease(Pool.SPOT, "w")
    assert numbers(world.queue.claim(lease, Pool.SPOT, 5)) == [2, 3]
    assert world.lines("queue", batch) == [1]


def test_concurrent_claims_take_each_request_once(world: World) -> None:
    batches = [world.batch(150, due_in=1000 * n) for n in (1, 2)]
    workers = 6

    def work() -> list[tuple[uuid.UUID, int]]:
        lease = world.queue.open_lease(Pool.SPOT, "w")
        claimed: list[tuple[uuid.UUID, int]] = []
        while claims := world.queue.claim(lease, Pool.SPOT, 7):
            claimed += [(claim.batch, claim.line) for claim in claims]
        return claimed

    claimed = together(*[work] * workers)
    # A claim skips rows that another one locks, so the last requests may need one more claim.
    claimed.append(work())
    assert Counter(place for places in claimed for place in places) == Counter(
        (batch, line) for batch in batches for line in range(1, 151)
    )


@pytest.mark.parametrize("gone", ["unknown", "closed", "reaped"])
def test_invalid_lease_claims_nothing(world: World, gone: str) -> None:
    lease = LeaseId(uuid.uuid4())
    if gone != "unknown":
        lease = world.queue.open_lease(Pool.SPOT, "w")
    if gone == "closed":
        world.queue.close_lease(lease)
    if gone == "reaped":
        world.expire_lease(lease)
        world.sweep()
    batch = world.batch(2)
    assert world.queue.claim(lease, Pool.SPOT, 5) == []
    assert world.queue.renew(lease) is False
    assert world.lines("queue", batch) == [1, 2]


def test_expired_lease_is_renewed_for_full_duration(world: World) -> None:
    lease = world.queue.open_lease(Pool.SPOT, "host/1")
    world.expire_lease(lease)
    assert world.queue.renew(lease)
    (row,) = world.rows("SELECT *, expires_at - now() AS left FROM workers")
    assert (row.id, row.pool, row.name) == (lease, "spot", "host/1")
    assert 29 < row.left.total_seconds() <= 30
    assert world.sweep() == 0
    assert world.queue.renew(lease)


def test_settlement_finishes_releases_and_retries_in_one_call(world: World) -> None:
    batch = world.batch(5)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    succeeded, failed, retried, interrupted, released = world.queue.claim(lease, Pool.SPOT, 5)
    settled = world.queue.settle(
        lease,
        [done(succeeded, body=b'{"n": 1.0}'), done(failed, succeeded=False)],
        [
            _returned(retried, failed=True, delay=3600),
            _returned(interrupted, interrupted=True),
            _returned(released),
        ],
    )
    assert (settled.finished, settled.returned, settled.drained) == (2, 3, ())
    assert world.lines("claims", batch) == []
    assert [
        (row.line, row.succeeded, row.status_code, row.body, row.attempts, row.pool, row.lease_id)
        for row in world.rows("SELECT * FROM results ORDER BY line")
    ] == [(1, True, 200, '{"n": 1.0}', 1, "spot", lease), (2, False, 400, "{}", 1, "spot", lease)]
    assert [
        (row.line, row.attempts, row.interruptions, row.lost_leases, row.later)
        for row in world.rows(
            "SELECT *, available_at > now() + '59 min' AS later FROM queue ORDER BY line"
        )
    ] == [(3, 1, 0, 0, True), (4, 0, 1, 0, False), (5, 0, 0, 0, False)]
    assert [
        (row.line, row.kind, row.detail)
        for row in world.rows("SELECT * FROM request_events ORDER BY line")
    ] == [(3, "retried", "why"), (4, "interrupted", "why")]
    row = world.row(batch)
    assert (row.tallied_completed, row.tallied_failed, row.retried, row.interrupted) == (1, 1, 1, 1)
    assert (row.input_tokens, row.output_tokens, row.status) == (6, 10, "in_progress")
    claimed_again = world.queue.claim(lease, Pool.SPOT, 5)
    assert [(claim.line, claim.attempts, claim.interruptions) for claim in claimed_again] == [
        (4, 0, 1),
        (5, 0, 0),
    ]


def test_settlement_counts_requests_of_cancelled_batch(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    finished, interrupted = world.queue.claim(lease, Pool.SPOT, 2)
    world.cancel(batch)
    settled = world.queue.settle(
        lease, [done(finished)], [_returned(interrupted, interrupted=True)]
    )
    assert (settled.finished, settled.returned) == (1, 1)


def test_settlement_may_span_batches(world: World) -> None:
    first, second = world.batch(1, due_in=10), world.batch(2, due_in=20)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    a, b, c = world.queue.claim(lease, Pool.SPOT, 5)
    settled = world.queue.settle(lease, [done(a), done(b)], [_returned(c)])
    assert (settled.finished, settled.returned) == (2, 1)
    assert [event.subject for event in settled.drained] == [f"batch_{first.hex}"]
    assert world.drained(second) == 0
    assert world.row(first).status == "finalizing"
    assert world.row(second).status == "in_progress"


def test_cached_and_reasoning_tokens_are_summed(world: World) -> None:
    batch = world.batch(3)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    for claim in world.queue.claim(lease, Pool.SPOT, 3):
        world.queue.settle(lease, [replace(done(claim), usage=Usage(9, 7, 4, 5))], [])
    stored = world.batches.get(DEFAULT_TENANT, batch)
    assert (stored.input_tokens, stored.output_tokens) == (27, 21)
    assert (stored.cached_tokens, stored.reasoning_tokens) == (12, 15)


def test_dead_letter_is_stored_with_its_error(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    answered, unanswered = world.queue.claim(lease, Pool.SPOT, 2)
    usage = Usage()
    world.queue.settle(
        lease,
        [
            Finished(
                batch,
                answered.line,
                succeeded=False,
                attempts=5,
                usage=usage,
                status_code=503,
                body=b"{}",
                dead_letter=True,
            ),
            Finished(
                batch,
                unanswered.line,
                succeeded=False,
                attempts=5,
                usage=usage,
                error_code="timeout",
                error_message="slow",
                dead_letter=True,
            ),
        ],
        [],
    )
    assert [
        (row.line, row.attempts, row.error_code, row.error_message)
        for row in world.rows("SELECT * FROM dead_letters ORDER BY line")
    ] == [(1, 5, "http_503", None), (2, 5, "timeout", "slow")]
    assert [
        row.detail for row in world.rows("SELECT detail FROM request_events ORDER BY line")
    ] == ["HTTP 503", "slow"]
    states = world.rows("SELECT status, dead_lettered FROM request_states ORDER BY line")
    assert [(row.status, row.dead_lettered) for row in states] == [("Failed", True)] * 2


def test_request_state_follows_queue_claim_and_result(world: World) -> None:
    batch = world.batch(4)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    first, second, _ = world.queue.claim(lease, Pool.SPOT, 3)
    world.queue.settle(lease, [done(first), done(second, succeeded=False)], [])
    states = world.rows("SELECT line, status, pool FROM request_states ORDER BY line")
    assert [(row.line, row.status, row.pool) for row in states] == [
        (1, "Completed", "spot"),
        (2, "Failed", "spot"),
        (3, "Running", "spot"),
        (4, "Queued", "spot"),
    ]
    world.cancel(batch)
    assert world.value("SELECT status FROM request_states WHERE line = 4") == "Cancelled"


@pytest.mark.parametrize("how", ["another's", "reaped", "closed", "settled before"])
def test_settlement_is_fenced_by_lease(world: World, how: str) -> None:
    batch = world.batch(2)
    mine = world.queue.open_lease(Pool.SPOT, "mine")
    claims: Sequence[Claim] = world.queue.claim(mine, Pool.SPOT, 2)
    late_lease = mine
    if how == "another's":
        late_lease = world.queue.open_lease(Pool.SPOT, "other")
    elif how == "reaped":
        world.expire_lease(mine)
        assert world.sweep() == 2
    elif how == "closed":
        world.queue.close_lease(mine)
    else:
        world.queue.settle(mine, [done(claims[0], body=b'"first"')], [_returned(claims[1])])
    before = world.contents()
    settled = world.queue.settle(
        late_lease, [done(claims[0], body=b'"late"')], [_returned(claims[1], failed=True)]
    )
    assert (settled.finished, settled.returned, settled.drained) == (0, 0, ())
    assert world.contents() == before
    assert world.drained(batch) == 0


def test_reaped_worker_cannot_settle_request_claimed_by_another(world: World) -> None:
    batch = world.batch(1)
    zombie = world.queue.open_lease(Pool.SPOT, "zombie")
    (old,) = world.queue.claim(zombie, Pool.SPOT, 1)
    world.expire_lease(zombie)
    world.sweep()
    successor = world.queue.open_lease(Pool.SPOT, "heir")
    (new,) = world.queue.claim(successor, Pool.SPOT, 1)
    assert world.queue.settle(zombie, [done(old, body=b'"zombie"')], []).finished == 0
    assert world.queue.settle(successor, [done(new, body=b'"heir"')], []).finished == 1
    assert world.value("SELECT body FROM results") == '"heir"'
    assert (world.drained(batch), world.row(batch).tallied_completed) == (1, 1)


def test_one_rejected_result_rolls_back_whole_settlement(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    good, bad = world.queue.claim(lease, Pool.SPOT, 2)
    with pytest.raises(Exception, match="invalid byte sequence"):
        world.queue.settle(lease, [done(good), done(bad, body=b"\x00")], [])
    assert world.lines("claims", batch) == [1, 2]
    assert world.lines("results", batch) == []


@pytest.mark.parametrize(
    "body", [r'"\u0000"', '"é𝄞\u2028"', '"%s :x"', '"\\\\"', '"' + "é" * 70_000 + '"'], ids=len
)
def test_bodies_are_stored_verbatim(world: World, body: str) -> None:
    world.batch(3)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    alone, *together = world.queue.claim(lease, Pool.SPOT, 3)
    world.queue.settle(lease, [done(alone, body=body.encode())], [])
    world.queue.settle(lease, [done(claim, body=body.encode()) for claim in together], [])
    assert [row.body for row in world.rows("SELECT body FROM results")] == [body] * 3


def test_closing_lease_releases_without_counting(world: World) -> None:
    batch = world.batch(3)
    world.split_runs()
    world.run(
        "UPDATE queued_runs SET lost_leases = 1, attempts = 2, interruptions = 3 WHERE line = 1"
    )
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.queue.claim(lease, Pool.SPOT, 2)
    world.queue.close_lease(lease)
    assert world.lines("claims", batch) == []
    assert [
        (row.line, row.attempts, row.interruptions, row.lost_leases)
        for row in world.rows("SELECT * FROM queue ORDER BY line")
    ] == [(1, 2, 3, 0), (2, 0, 0, 0), (3, 0, 0, 0)]
    assert world.rows("SELECT * FROM workers") == []
    assert world.rows("SELECT * FROM request_events") == []
    world.queue.close_lease(lease)


@pytest.mark.parametrize("last", ["finished", "returned", "closed", "reaped"])
@pytest.mark.parametrize("ending", ["cancelled", "expired"])
def test_requests_of_ending_batch_are_not_queued_again(
    world: World, ending: str, last: str
) -> None:
    batch = world.batch(5)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    first, second = world.queue.claim(lease, Pool.SPOT, 2)
    if ending == "cancelled":
        assert world.cancel(batch) is False
    else:
        # As if an expiry had found both requests being settled: they are left to their worker.
        world.run("UPDATE batches SET expiring = true")
        world.run("DELETE FROM queued_runs")
    assert world.lines("queue", batch) == []
    assert world.queue.settle(lease, [], [_returned(first, interrupted=True)]).returned == 1
    assert world.drained(batch) == 0
    if last == "finished":
        world.queue.settle(lease, [done(second)], [])
    elif last == "returned":
        world.queue.settle(lease, [], [_returned(second, failed=True)])
    elif last == "closed":
        world.queue.close_lease(lease)
    else:
        world.expire_lease(lease)
        world.sweep()
    assert world.drained(batch) == 1
    assert (world.lines("queue", batch), world.lines("claims", batch)) == ([], [])
    row = world.row(batch)
    assert row.drained_at is not None
    assert row.status == (
        BatchStatus.CANCELLING if ending == "cancelled" else BatchStatus.IN_PROGRESS
    )
