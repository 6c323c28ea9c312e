"""Loading the bodies of claimed requests; each input object is a fault domain of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import LowtideError, NotFound
from lowtide.engines.outcomes import Usage
from lowtide.files.lines import UnsendableBody, body_of
from lowtide.objects.names import Damaged
from lowtide.queue.claims import Finished, Returned

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from random import Random

    from lowtide.engines.flow import ByteBudget
    from lowtide.objects.store import ObjectStore
    from lowtide.queue.claims import Claim


_log = logging.getLogger(__name__)
_MIB: Final = 2**20
_PART_BYTES: Final = 4 * _MIB
_READ_SECONDS: Final = 5.0
"""Timeout of a read, plus a second for each MiB."""
_COPIES_IN_MEMORY: Final = 2
"""Copies of a request in memory: the line as read, and the body cut out of it."""
_FIRST_DELAY: Final = 2.0
_MAX_DELAY: Final = 60.0
_SPREAD: Final = 5.0
_FORGET_SECONDS: Final = 600.0
_MAX_RELEASE_DELAY: Final = 1.0
"""Max seconds that requests of a failing object stay claimed before they are released.

Released immediately, the batch's requests would be claimed in turn, as fast as the database can."""

_MISSING: Final = "The input file is no longer in the object store."
_CHANGED: Final = (
    "The request's bytes in the input file differ from the upload: the object was changed or "
    "damaged. Upload the file again and create a new batch."
)
_SHORT: Final = (
    "The input file ends before the end of this request: the object is truncated. Upload the "
    "file again and create a new batch."
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Bodies by key, and the settlement of the requests without one."""

    bodies: Mapping[int, bytes]
    settled: Mapping[int, Finished | Returned]


@dataclass(slots=True)
class _FailingObject:
    """An object whose reads fail: the failures in a row, the last one, and the next read."""

    failures: int = 0
    failed_at: float = 0.0
    until: float = 0.0


class InputLoader:
    """Reads bodies within a budget. An object that fails or hangs delays only its own requests.

    After a failed read the object's requests are released without another read for 2 seconds, and
    for twice as long after each further failure, up to a minute.
    """

    def __init__(self, objects: ObjectStore, budget: ByteBudget, rng: Random) -> None:
        self._objects = objects
        self._budget = budget
        self._rng = rng
        self._failing_objects: dict[str, _FailingObject] = {}
        self._sizes: dict[int, int] = {}
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        budget.on_room(self._admit)

    @staticmethod
    def parts(claims: Mapping[int, Claim]) -> Sequence[Mapping[int, Claim]]:
        """Split claims by input object into parts of a few MiB, to be loaded independently."""
        parts: list[dict[int, Claim]] = []
        last: dict[str, tuple[dict[int, Claim], int]] = {}
        for key, claim in claims.items():
            part, size = last.get(claim.input_key, ({}, 0))
            if not part or size + claim.length > _PART_BYTES:
                part, size = {}, 0
                parts.append(part)
            part[key] = claim
            last[claim.input_key] = (part, size + claim.length)
        return parts

    async def load(self, part: Mapping[int, Claim]) -> Loaded:
        """Read the bodies of one part once there is room; `release` each when it is not needed.

        Raises only on a bug.
        """
        input_key = next(iter(part.values())).input_key
        failing = self._failing_objects.get(input_key)
        if failing is not None and failing.until > monotonic():
            return await self._postpone(part, failing.until - monotonic())
        size = sum(claim.length for claim in part.values())
        await self._acquire(_COPIES_IN_MEMORY * size)
        loaded_bytes = 0
        try:
            loaded = await self._read(input_key, part, size)
            sizes = {key: len(body) for key, body in loaded.bodies.items()}
            self._sizes |= sizes
            loaded_bytes = sum(sizes.values())
        finally:
            self._budget.give(_COPIES_IN_MEMORY * size - loaded_bytes)
        return loaded

    def release(self, keys: Iterable[int]) -> None:
        """Free the room of bodies that are no longer needed."""
        self._budget.give(sum(self._sizes.pop(key, 0) for key in keys))

    def release_all(self) -> None:
        """Free the room of all bodies."""
        self.release(list(self._sizes))

    async def _read(self, input_key: str, part: Mapping[int, Claim], size: int) -> Loaded:
        ranges = [(claim.start, claim.length) for claim in part.values()]
        began = monotonic()
        seconds = _READ_SECONDS + size / _MIB
        if (failing := self._failing_objects.get(input_key)) is not None:
            # One read tests the object; others must not pile up behind it.
            failing.until = began + seconds
        try:
            async with asyncio.timeout(seconds):
                lines = await self._objects.fetch_ranges(input_key, ranges)
        except NotFound:
            self._failing_objects.pop(input_key, None)
            settled = {
                key: _unsent(claim, "input_missing", _MISSING) for key, claim in part.items()
            }
            return Loaded({}, settled)
        except Damaged:
            self._failing_objects.pop(input_key, None)
            settled = {
                key: _unsent(claim, "input_corrupt", _CHANGED) for key, claim in part.items()
            }
            return Loaded({}, settled)
        except (LowtideError, TimeoutError) as error:
            return await self._postpone(part, self._failed(input_key, began, error))
        self._failing_objects.pop(input_key, None)
        return _verified(part, lines)

    def _failed(self, input_key: str, began: float, error: Exception) -> float:
        """Count a failed read; return the seconds until the object is read again."""
        now = monotonic()
        failing = self._failing_objects.setdefault(input_key, _FailingObject())
        # Concurrent reads fail together, and count once.
        if began >= failing.failed_at:
            failing.failures += 1
            delay = min(_FIRST_DELAY * 2.0 ** (failing.failures - 1), _MAX_DELAY)
            failing.failed_at, failing.until = now, now + delay
            reason = error.message if isinstance(error, LowtideError) else "timed out"
            _log.warning("input.unreadable", extra={"object": input_key, "reason": reason})
            self._forget_old(now)
        return failing.until - now

    def _forget_old(self, now: float) -> None:
        """Drop objects that were not read for long: their batches have ended."""
        self._failing_objects = {
            key: failing
            for key, failing in self._failing_objects.items()
            if failing.until > now - _FORGET_SECONDS
        }

    async def _postpone(self, part: Mapping[int, Claim], delay: float) -> Loaded:
        wait = min(delay, _MAX_RELEASE_DELAY)
        await asyncio.sleep(wait)
        # Spread out, since requests claimed in one set are read together.
        delay = delay - wait + self._rng.uniform(0.0, min(delay, _SPREAD))
        return Loaded({}, {key: _released(claim, delay) for key, claim in part.items()})

    async def _acquire(self, size: int) -> None:
        """Wait for room in the budget, first come, first served."""
        if not self._waiting and self._budget.has_half_for(size):
            self._budget.take(size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._budget.give(size)
            raise

    def _admit(self) -> None:
        """Admit the waiting reads that there is room for now."""
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if not self._budget.has_half_for(size):
                    return
                self._budget.take(size)
                turn.set_result(None)
            self._waiting.popleft()


def _verified(part: Mapping[int, Claim], lines: Sequence[bytes]) -> Loaded:
    """Return the bodies of lines that match the upload; fail the other requests."""
    bodies: dict[int, bytes] = {}
    settled: dict[int, Finished | Returned] = {}
    for (key, claim), line in zip(part.items(), lines, strict=True):
        try:
            body = body_of(line) if claim.proves(line) else None
        except UnsendableBody as error:
            message = f"Line {claim.line} cannot be sent: {error}."
            settled[key] = _unsent(claim, "invalid_unicode", message)
            continue
        if len(line) != claim.length:
            settled[key] = _unsent(claim, "input_corrupt", _SHORT)
        elif body is None:
            settled[key] = _unsent(claim, "input_corrupt", _CHANGED)
        else:
            bodies[key] = body
    return Loaded(bodies, settled)


def _unsent(claim: Claim, code: str, message: str) -> Finished:
    """Return the failure of a request that was never sent: no attempt is counted."""
    return Finished(
        claim.batch,
        claim.line,
        succeeded=False,
        attempts=claim.attempts,
        usage=Usage(),
        error_code=code,
        error_message=message,
    )


def _released(claim: Claim, delay: float) -> Returned:
    delay = min(delay, max(claim.due_in - _READ_SECONDS, 0.0))
    return Returned(claim.batch, claim.line, "The input file could not be read", delay=delay)
