"""Letting people in to the portal."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from lowtide.domain.errors import TooManyRequests, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from lowtide.domain.visitors import Visitor
    from lowtide.ports import SignIn

MOST_FAILURES: Final = 10
WITHIN_SECONDS: Final = 60.0
_MOST_SECRET: Final = 256
_MOST_PLACES: Final = 10_000


class Entrance:
    """Tries one way after the other. Ten wrong secrets from one place in a minute close it there."""

    def __init__(self, ways: Sequence[SignIn], *, timer: Callable[[], float]) -> None:
        self._ways = ways
        self._timer = timer
        self._failures: dict[str, deque[float]] = {}

    def admit(self, secret: str, place: str) -> Visitor:
        """Return who knows this secret; raises Unauthenticated, or TooManyRequests.

        `place` is the network address that it comes from.
        """
        self._check(place)
        for way in self._ways if 0 < len(secret) <= _MOST_SECRET else ():
            visitor = way.visitor(secret)
            if visitor is not None:
                self._failures.pop(place, None)
                return visitor
        if len(self._failures) >= _MOST_PLACES:
            self._failures.clear()
        self._failures.setdefault(place, deque(maxlen=MOST_FAILURES)).append(self._timer())
        raise Unauthenticated("That is neither a password nor an API key in use: check it.")

    def ended(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return those of these credentials that open nothing any more; raises Unavailable."""
        left = set(credentials)
        for way in self._ways:
            left -= way.holding(left)
        return left

    def _check(self, place: str) -> None:
        failures = self._failures.get(place)
        if failures is None or len(failures) < MOST_FAILURES:
            return
        wait = failures[0] + WITHIN_SECONDS - self._timer()
        if wait > 0:
            raise TooManyRequests(
                f"Too many wrong tries: wait {wait:.0f} s.", reason="sign_in", retry_after=wait
            )
