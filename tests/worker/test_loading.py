"""Reading inputs: a fault of one object or one line affects no other request."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.errors import Unavailable
from lowtide.core.ids import BatchId, new_id
from lowtide.engines.flow import ByteBudget
from lowtide.files.lines import checksum_of
from lowtide.objects.store import ObstoreObjects
from lowtide.queue.claims import Claim, Finished, Returned
from lowtide.worker import inputs as input_loader
from lowtide.worker.inputs import InputLoader
from tests.worker.workers import until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lowtide.worker.inputs import Loaded

BATCH = BatchId(new_id())
MIB = 2**20


def _line(number: int, size: int = 60) -> bytes:
    line = b'{"custom_id":"%d","body":{"model":"m","n":%d,"text":"' % (number, number)
    return line + b"x" * (size - len(line) - 3) + b'"}}'


class Inputs:
    """A folder of input objects and their loader."""

    def __init__(self, folder: Path, limit: int = 2**28) -> None:
        self.folder = folder
        self.objects = ObstoreObjects(folder.as_uri())
        self.budget = ByteBudget(limit)
        self.loader = InputLoader(self.objects, self.budget, Random(0))  # noqa: S311
        self.claims: dict[int, Claim] = {}

    def put(self, key: str, lines: int, size: int = 60) -> None:
        """Store an object, and claim all of its requests."""
        content = [_line(number, size) for number in range(1, lines + 1)]
        with self.objects.open_writer(key) as writer:
            writer.write(b"".join(line + b"\n" for line in content))
        for number, line in enumerate(content, 1):
            self.claims[len(self.claims)] = Claim(
                BATCH, "/v1/x", key, number, (number - 1) * (size + 1), size, 2, 1,
                checksum=checksum_of(line),
            )  # fmt: skip

    async def load_all(self) -> Loaded:
        """Load all claimed requests."""
        parts = self.loader.parts(self.claims)
        loaded = await asyncio.gather(*(self.loader.load(part) for part in parts))
        bodies: dict[int, bytes] = {}
        settled: dict[int, Finished | Returned] = {}
        for part_loaded in loaded:
            bodies |= part_loaded.bodies
            settled |= part_loaded.settled
        assert len(bodies) + len(settled) == len(self.claims)
        return input_loader.Loaded(bodies, settled)

    def by_object(self, loaded: Loaded) -> Mapping[str, Counter[str]]:
        """Count the outcomes of the requests of each object."""
        counts: dict[str, Counter[str]] = {}
        for key, claim in self.claims.items():
            settled = loaded.settled.get(key)
            outcome = "runs" if settled is None else "released"
            if isinstance(settled, Finished):
                outcome = settled.error_code or ""
            counts.setdefault(claim.input_key, Counter())[outcome] += 1
        return counts


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    created = Inputs(tmp_path)
    for key in ("a", "b"):
        created.put(key, 5)
    return created


def test_loaded_bodies_count_against_budget(inputs: Inputs) -> None:
    loaded = asyncio.run(inputs.load_all())
    assert loaded.settled == {}
    assert loaded.bodies[0].startswith(b'{"model":"m","n":1,')
    assert inputs.budget.used == sum(len(body) for body in loaded.bodies.values())
    inputs.loader.release(list(loaded.bodies)[:4])
    inputs.loader.release(loaded.bodies)
    assert inputs.budget.used == 0


def test_missing_object_fails_only_its_own_requests(inputs: Inputs) -> None:
    (inputs.folder / "a").unlink()
    loaded = asyncio.run(inputs.load_all())
    assert inputs.by_object(loaded) == {"a": {"input_missing": 5}, "b": {"runs": 5}}
    settled = loaded.settled[0]
    assert isinstance(settled, Finished)
    assert (settled.attempts, settled.dead_letter, settled.error_message) == (
        2,
        False,
        input_loader._MISSING,
    )


def test_missing_folder_releases_all_requests(inputs: Inputs) -> None:
    inputs.folder.rename(inputs.folder.with_name("away"))
    loaded = asyncio.run(inputs.load_all())
    assert inputs.by_object(loaded) == {"a": {"released": 5}, "b": {"released": 5}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda data: data[::-1], {"input_corrupt": 5}, id="garbage"),
        pytest.param(
            lambda data: data.replace(b'"n":2', b'"n":7'),
            {"runs": 4, "input_corrupt": 1},
            id="a digit",
        ),
        pytest.param(lambda data: data[:150], {"runs": 2, "input_corrupt": 3}, id="cut short"),
        pytest.param(lambda data: data[:122], {"runs": 2, "input_corrupt": 3}, id="whole lines"),
        pytest.param(lambda _: b"", {"input_corrupt": 5}, id="emptied"),
    ],
)
def test_only_corrupt_requests_fail(inputs: Inputs, change: Any, expected: dict[str, int]) -> None:
    path = inputs.folder / "a"
    path.write_bytes(change(path.read_bytes()))
    loaded = asyncio.run(inputs.load_all())
    assert inputs.by_object(loaded) == {"a": expected, "b": {"runs": 5}}


def test_request_without_checksum_runs_unverified(inputs: Inputs) -> None:
    path = inputs.folder / "a"
    path.write_bytes(path.read_bytes().replace(b'"n":2', b'"n":7'))
    claim = inputs.claims[1]
    inputs.claims = {0: Claim(BATCH, "/v1/x", "a", 2, claim.start, claim.length, 0, 0)}
    assert b'"n":7' in asyncio.run(inputs.load_all()).bodies[0]


class Timeline:
    """The time at which the requests of each object were loaded."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.done: dict[str, float] = {}

    async def run(self) -> None:
        async def load_part(part: Mapping[int, Claim]) -> None:
            await self.inputs.loader.load(part)
            self.done[next(iter(part.values())).input_key] = time.monotonic()

        await asyncio.gather(*map(load_part, self.inputs.loader.parts(self.inputs.claims)))


def test_hanging_object_delays_no_other(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_loader, "_READ_SECONDS", 1.0)
    (inputs.folder / "a").unlink()
    os.mkfifo(inputs.folder / "a")  # opening it blocks until it has a writer
    timeline = Timeline(inputs)
    asyncio.run(timeline.run())
    assert timeline.done["a"] - timeline.done["b"] > 0.9


class Failing(ObstoreObjects):
    """A store whose `broken` objects fail, and that counts reads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.as_uri())
        self.broken = {"a"}
        self.reads: Counter[str] = Counter()

    async def fetch_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        self.reads[key] += 1
        if key in self.broken:
            raise Unavailable("HTTP 503")
        return await super().fetch_ranges(key, ranges)


def test_failing_object_is_read_ever_less_often(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_FIRST_DELAY": 0.2, "_MAX_RELEASE_DELAY": 0.01, "_SPREAD": 0.0}.items():
        monkeypatch.setattr(input_loader, name, value)
    store = Failing(inputs.folder)
    inputs.loader._objects = store

    async def run() -> list[float]:
        delays = []
        ends = time.monotonic() + 1.3
        while time.monotonic() < ends:
            loaded = await inputs.load_all()
            assert inputs.by_object(loaded) == {"a": {"released": 5}, "b": {"runs": 5}}
            settled = loaded.settled[0]
            assert isinstance(settled, Returned)
            assert (settled.failed, settled.interrupted) == (False, False)
            delays.append(settled.delay)
            inputs.loader.release(loaded.bodies)
        return delays

    delays = asyncio.run(run())
    # Reads at 0, 0.2 and 0.6 s only: the next would be at 1.4 s.
    assert store.reads["a"] == 3
    assert store.reads["b"] == len(delays) > 20
    assert 0.4 < max(delays) <= 0.8
    assert inputs.budget.used == 0
    store.broken.clear()

    async def healed() -> None:
        outcomes = {"released"}
        while outcomes != {"runs"}:
            outcomes = set(inputs.by_object(await inputs.load_all())["a"])

    asyncio.run(asyncio.wait_for(healed(), 15))


def test_loads_wait_for_room_in_budget(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, limit=40 * MIB)
    inputs.put("a", 12, 3 * MIB)

    async def run() -> int:
        peak = 0
        bodies: list[int] = []
        started: list[int] = []

        async def load_part(part: Mapping[int, Claim]) -> None:
            loaded = await inputs.loader.load(part)
            bodies.extend(loaded.bodies)
            started.extend(loaded.bodies)

        parts = inputs.loader.parts(inputs.claims)
        assert [len(part) for part in parts] == [1] * 12
        running = [asyncio.create_task(load_part(part)) for part in parts]
        while len(started) < 12:
            await until(lambda: bodies)
            peak = max(peak, inputs.budget.used)
            inputs.loader.release([bodies.pop()])
        await asyncio.gather(*running)
        inputs.loader.release_all()
        return peak

    assert asyncio.run(run()) <= 20 * MIB
    assert inputs.budget.used == 0


def test_request_larger_than_budget_loads_alone(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, limit=MIB)
    inputs.put("a", 2, 3 * MIB)

    async def run() -> None:
        first, second = inputs.loader.parts(inputs.claims)
        loaded = await inputs.loader.load(first)
        waiting = asyncio.create_task(inputs.loader.load(second))
        await asyncio.sleep(0)
        assert not waiting.done()
        inputs.loader.release(loaded.bodies)
        assert len((await waiting).bodies) == 1

    asyncio.run(run())


def test_cancelled_load_does_not_block_next_one(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, limit=MIB)
    inputs.put("a", 3, 3 * MIB)

    async def run() -> None:
        first, second, third = inputs.loader.parts(inputs.claims)
        loaded = await inputs.loader.load(first)
        waiting = [asyncio.create_task(inputs.loader.load(part)) for part in (second, third)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        inputs.loader.release(loaded.bodies)
        assert len((await waiting[1]).bodies) == 1
        inputs.loader.release_all()

    asyncio.run(run())
    assert inputs.budget.used == 0
