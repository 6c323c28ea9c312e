"""The time that a client may keep a thread waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

CROWDED_SECONDS: Final = 3.0
CROWDED_RATE: Final = float(1 << 18)
"""What a client must keep, in bytes a second, while all threads are taken."""
PATIENCE = "lowtide.patience"
"""Key of a request's Patience in its WSGI environment."""


class Patience:
    """Seconds that a thread may wait for the client of one request.

    Waiting uses them up. Once `earn` is called, each byte that passes gives a little back: a client
    that keeps the minimum rate, on average, may take as long as it needs. While it is `crowded`, which
    is when all threads are taken, clients must be quicker, or go within seconds.
    """

    def __init__(
        self,
        seconds: float,
        *,
        timeout: float,
        rate: float,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self.left = seconds
        self._timeout = timeout
        self._rate = rate
        self._crowded = crowded
        self._earns = False

    def earn(self) -> None:
        """Let bytes count from here on: the caller is known."""
        self._earns = True
        self.left = self._timeout

    def waited(self, seconds: float, transferred: int) -> None:
        """Subtract a wait, and add what the bytes that ended it are worth."""
        rate, most = self._rate, self._timeout
        if self._crowded():
            rate, most = max(rate, CROWDED_RATE), min(most, CROWDED_SECONDS)
        worth = transferred / rate if self._earns else 0.0
        self.left = min(self.left - seconds + worth, most)
