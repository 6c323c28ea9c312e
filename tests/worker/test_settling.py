"""ResultWriter: micro-batches, outages, and results that the database rejects."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from lowtide.core.pools import Pool
from lowtide.engines.flow import ByteBudget
from lowtide.events.publisher import Publisher
from lowtide.queue.claims import Returned
from lowtide.worker import results
from lowtide.worker.results import FlushRules, ResultWriter
from tests.worker.workers import PATIENCE, FlakyQueue, Meter, Sink, lease_keeper, until
from tests.worlds import done

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from lowtide.queue.claims import Claim
    from tests.worlds import World


def _write(
    world: World,
    rules: FlushRules,
    during: Callable[[ResultWriter, FlakyQueue, Sequence[Claim]], Coroutine[Any, Any, None]],
) -> Meter:
    """Run a result writer under a lease that claims every request."""
    queue, meter = FlakyQueue(world.queue), Meter()
    keeper = lease_keeper(world, queue)
    keeper.lease = world.queue.open_lease(Pool.SPOT, "w")
    writer = ResultWriter(
        keeper, queue, Publisher(Sink(), world.outbox), meter, rules, ByteBudget(2**28)
    )

    async def run() -> None:
        assert keeper.lease is not None
        claims = world.queue.claim(keeper.lease, Pool.SPOT, 1000)
        writing = asyncio.create_task(writer.run(lambda: None))
        await during(writer, queue, claims)
        # Metrics are counted after the commit that a test waits for.
        await writer.drain(PATIENCE)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    asyncio.run(run())
    return meter


def _finished(world: World) -> int:
    return int(world.value("SELECT count(*) FROM results"))


def test_enough_results_are_written_in_one_settlement(world: World) -> None:
    world.batch(30)

    async def during(writer: ResultWriter, queue: FlakyQueue, claims: Sequence[Claim]) -> None:
        for claim in claims:
            writer.add([done(claim)])
        await until(lambda: _finished(world) == 30)
        assert queue.calls["settle"] == 1

    assert _write(world, FlushRules(10, 600), during).completed == 30


def test_few_results_are_written_after_interval(world: World) -> None:
    world.batch(3)

    async def during(writer: ResultWriter, _: FlakyQueue, claims: Sequence[Claim]) -> None:
        writer.add([done(claim) for claim in claims])
        await until(lambda: _finished(world) == 3)

    _write(world, FlushRules(1000, 0.02), during)


def test_unstorable_result_fails_only_its_request(world: World) -> None:
    batch = world.batch(4)

    async def during(writer: ResultWriter, _: FlakyQueue, claims: Sequence[Claim]) -> None:
        bodies = [b"{}", b"\x00", b"\xed\xa0\x80", b"{}"]
        ended = [done(claim, body=body) for claim, body in zip(claims, bodies, strict=True)]
        writer.add([replace(each, attempts=3) for each in ended])
        await until(lambda: _finished(world) == 4)

    _write(world, FlushRules(4, 600), during)
    rows = world.rows("SELECT line, succeeded, error_code, attempts FROM results ORDER BY line")
    assert [tuple(row) for row in rows] == [
        (1, True, None, 3),
        (2, False, "result_not_storable", 3),
        (3, False, "result_not_storable", 3),
        (4, True, None, 3),
    ]
    assert world.lines("dead_letters", batch) == [2, 3]
    assert world.row(batch).status == "finalizing"


def test_unstorable_result_of_a_large_set_is_found_by_halves(world: World) -> None:
    world.batch(500)

    async def during(writer: ResultWriter, queue: FlakyQueue, claims: Sequence[Claim]) -> None:
        bodies = [b"\x00" if claim.line == 300 else b"{}" for claim in claims]
        writer.add([done(claim, body=body) for claim, body in zip(claims, bodies, strict=True)])
        await until(lambda: _finished(world) == 500)
        assert queue.calls["settle"] < 25

    _write(world, FlushRules(500, 600), during)
    failed = world.rows("SELECT line, error_code FROM results WHERE NOT succeeded")
    assert [tuple(row) for row in failed] == [(300, "result_not_storable")]


def test_outage_delays_results_and_loses_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_RETRY_SECONDS", 0.001)
    world.batch(20)

    async def during(writer: ResultWriter, queue: FlakyQueue, claims: Sequence[Claim]) -> None:
        queue.fail("settle", 4)
        for claim in claims:
            writer.add([done(claim)])
            await asyncio.sleep(0)
        await until(lambda: _finished(world) == 20)
        assert queue.calls["settle"] >= 5

    assert _write(world, FlushRules(5, 0.01), during).completed == 20


def test_drain_writes_pending_results_and_times_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_RETRY_SECONDS", 0.001)
    world.batch(4)

    async def during(writer: ResultWriter, queue: FlakyQueue, claims: Sequence[Claim]) -> None:
        writer.add([done(claims[0]), Returned(claims[1].batch, claims[1].line, "back")])
        await writer.drain(10)
        assert _finished(world) == 1
        queue.fail("settle", 1_000_000)
        writer.add([done(claims[2])])
        await writer.drain(0.05)
        assert _finished(world) == 1

    _write(world, FlushRules(100, 600), during)
    assert world.value("SELECT count(*) FROM queue") == 1


def test_results_without_lease_are_dropped(world: World) -> None:
    world.batch(1)

    async def during(writer: ResultWriter, queue: FlakyQueue, claims: Sequence[Claim]) -> None:
        writer._keeper.lease = None
        writer.add([done(claims[0])])
        await writer.drain(5)
        assert "settle" not in queue.calls

    _write(world, FlushRules(100, 600), during)


def test_results_are_counted_as_in_time_or_late(world: World) -> None:
    world.batch(3, due_in=1000)
    world.batch(2, due_in=-1)

    async def during(writer: ResultWriter, _: FlakyQueue, claims: Sequence[Claim]) -> None:
        outcomes = [done(claim, succeeded=claim.line > 1) for claim in claims[:4]]
        finished = [replace(result, replica_seconds=0.5) for result in outcomes]
        interrupted = Returned(claims[4].batch, claims[4].line, "back", interrupted=True)
        writer.add([*finished, interrupted])
        await until(lambda: _finished(world) == 4)

    meter = _write(world, FlushRules(1, 0.01), during)
    # The first two claims are of the late batch, which is the most urgent.
    assert (meter.in_time, meter.late) == (2, 2)
    assert meter.interruptions == 1
    assert meter.replica_seconds == 2.0


def test_large_results_are_split_by_statement_size(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_RETRY_SECONDS", 0.001)
    world.batch(30)
    mib = 2**20
    statements: list[list[int]] = []

    async def during(writer: ResultWriter, queue: FlakyQueue, claims: Sequence[Claim]) -> None:
        real = queue.settle

        def settle(lease: Any, finished: Sequence[Any], returned: Sequence[Any]) -> Any:
            statements.append([len(result.body) for result in finished])
            if len(statements) == 3:
                queue.fail("settle", 1)
            return real(lease, finished, returned)

        monkeypatch.setattr(queue, "settle", settle)
        sizes = [*[3 * mib] * 5, 9 * mib, *[10] * 24]
        bodies = [b'"' + b"x" * (size - 2) + b'"' for size in sizes]
        writer.add([done(claim, body=body) for claim, body in zip(claims, bodies, strict=True)])
        assert writer._budget.used >= 24 * mib
        await until(lambda: _finished(world) == 30)
        await until(lambda: writer._budget.used == 0)

    assert _write(world, FlushRules(1000, 600), during).completed == 30
    max_bytes = results.STATEMENT_BYTES
    assert all(sum(sizes) <= max_bytes or len(sizes) == 1 for sizes in statements)
    assert [len(sizes) for sizes in statements] == [2, 2, 1, 1, 1, 24]
    stored = world.rows("SELECT length(body) AS size FROM results ORDER BY line LIMIT 7")
    assert [row.size for row in stored] == [*[3 * mib] * 5, 9 * mib, 10]


def test_discarded_results_free_budget(world: World) -> None:
    world.batch(2)

    async def during(writer: ResultWriter, _: FlakyQueue, claims: Sequence[Claim]) -> None:
        writer.add([done(claim, body=b"x" * 1000) for claim in claims])
        assert writer._budget.used == 2000
        writer.discard()
        assert writer._budget.used == 0

    _write(world, FlushRules(100, 600), during)


@pytest.mark.parametrize(
    ("ended", "seconds", "enough"),
    [(0, 1.0, 200), (20, 0.1, 200), (50_000, 10.0, 500), (3000, 0.1, 3000), (90_000, 1.0, 4000)],
)  # fmt: skip
def test_sets_are_as_large_as_what_ends_in_an_interval(
    ended: int, seconds: float, enough: int
) -> None:
    rules = FlushRules()
    assert rules.enough(ended, seconds) == enough
