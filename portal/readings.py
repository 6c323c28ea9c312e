"""What open pages look at, read by the one poller: each distinct reading once a turn."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lowtide.domain.errors import LowtideError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_Value = TypeVar("_Value")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading(Generic[_Value]):
    """The last good value, None before the first, and what is wrong since."""

    value: _Value | None = None
    problem: LowtideError | None = None
    at: datetime | None = None


class Subject(Generic[_Value]):
    """One thing to read, for all pages that look at it. `key` names it, `read` may take a while."""

    def __init__(self, key: Hashable, read: Callable[[], _Value]) -> None:
        self.key = key
        self.reading: Reading[_Value] = Reading()
        self._read = read

    def look(self) -> None:
        """Read anew; keeps the last good value when that fails."""
        try:
            self.reading = Reading(self._read(), at=datetime.now(UTC))
        except LowtideError as error:
            self.reading = Reading(self.reading.value, error, self.reading.at)


class Readings:
    """Who looks at what. Pages that look at the same share one subject, and a paused page costs nothing."""

    def __init__(self) -> None:
        self._followers: dict[str, tuple[Subject[Any], Callable[[], bool]]] = {}

    def follow(
        self,
        follower: str,
        subject: Subject[_Value],
        paused: Callable[[], bool],
    ) -> Subject[_Value]:
        """Have the poller read a subject for this follower instead of what it looked at before.

        Returns the subject of that key that others look at, if they do.
        """
        found = subject
        for known, _ in list(self._followers.values()):
            if known.key == subject.key:
                found = known
        self._followers[follower] = (found, paused)
        return found

    def unfollow(self, follower: str) -> None:
        """Forget a follower."""
        self._followers.pop(follower, None)

    def look(self) -> None:
        """Read each subject that somebody looks at; a bug in one holds up no other."""
        followed = list(self._followers.values())
        for subject in {id(each): each for each, paused in followed if not paused()}.values():
            try:
                subject.look()
            except Exception:  # noqa: BLE001 - as in the poller: what fails is logged, the rest goes on
                _log.exception("portal.reading_failed")


def at_most_every(
    seconds: float,
    read: Callable[[], _Value],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], _Value]:
    """Return a reading that repeats itself where the last one is younger than this."""
    last: tuple[float, _Value] | None = None

    def again() -> _Value:
        nonlocal last
        now = clock()
        if last is None or now - last[0] >= seconds:
            last = (now, read())
        return last[1]

    return again
