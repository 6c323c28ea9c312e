"""Letting people in to the portal."""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from lowtide.domain.errors import TooManyRequests, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from lowtide.domain.visitors import Visitor
    from lowtide.ports import SignIn

MOST_FAILURES: Final = 10
WITHIN_SECONDS: Final = 60.0
MOST_PLACES: Final = 10_000
_MOST_SECRET: Final = 256
_KEY: Final = "lt_"
_IPV6_PREFIX: Final = 64  # what one subscriber has to choose addresses from

_Place = tuple[str, str]


class Entrance:
    """Tries one way after the other, and lets nobody guess.

    Ten wrong secrets of one kind from one network in a minute shut that kind out there, and nowhere
    else. A try is counted before its secret is compared, so that tries at once are no more than ten.
    """

    def __init__(self, ways: Sequence[SignIn], *, timer: Callable[[], float]) -> None:
        self._ways = ways
        self._timer = timer
        self._tries: OrderedDict[_Place, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def admit(self, secret: str, address: str) -> Visitor:
        """Return who knows this secret; raises Unauthenticated, TooManyRequests or Unavailable.

        `address` is the network address that it comes from.
        """
        place = ("key" if secret.startswith(_KEY) else "password", network_of(address))
        counted = self._count(place)
        try:
            visitor = self._visitor(secret)
        except BaseException:
            self._forget(place, counted)  # nothing was compared: the database is away
            raise
        if visitor is None:
            raise Unauthenticated("That is neither a password nor an API key in use: check it.")
        # Its own try alone: a viewer's password must not buy ten more tries at the operator's.
        self._forget(place, counted)
        return visitor

    def ended(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return those of these credentials that open nothing any more; raises Unavailable."""
        left = set(credentials)
        for way in self._ways:
            left -= way.holding(left)
        return left

    def _visitor(self, secret: str) -> Visitor | None:
        if not 0 < len(secret) <= _MOST_SECRET:
            return None
        found = (way.visitor(secret) for way in self._ways)
        return next((visitor for visitor in found if visitor is not None), None)

    def _count(self, place: _Place) -> float:
        now = self._timer()
        with self._lock:
            tries = self._tries.setdefault(place, deque())
            self._tries.move_to_end(place)
            while tries and tries[0] + WITHIN_SECONDS <= now:
                tries.popleft()
            if len(tries) >= MOST_FAILURES:
                wait = tries[0] + WITHIN_SECONDS - now
                raise TooManyRequests(
                    f"Too many wrong tries: wait {wait:.0f} s.", reason="sign_in", retry_after=wait
                )
            tries.append(now)
            while len(self._tries) > MOST_PLACES:
                self._tries.popitem(last=False)
        return now

    def _forget(self, place: _Place, counted: float) -> None:
        with self._lock:
            tries = self._tries.get(place)
            if tries is None or counted not in tries:
                return
            tries.remove(counted)
            if not tries:
                del self._tries[place]


def network_of(address: str) -> str:
    """Return whose tries are counted together: an IPv4 address, the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
    return str(parsed)
