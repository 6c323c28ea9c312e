"""The time that a client may keep a thread waiting."""

from __future__ import annotations

PATIENCE = "lowtide.patience"
"""Key of a request's Patience in its WSGI environment."""


class Patience:
    """Seconds that a thread may wait for the client of one request.

    Waiting uses them up. Once `earn` is called, each byte that passes gives a little back: a client
    that keeps the minimum rate, on average, may take as long as it needs.
    """

    def __init__(self, seconds: float, *, timeout: float, rate: float) -> None:
        self.left = seconds
        self._timeout = timeout
        self._rate = rate
        self._earns = False

    def earn(self) -> None:
        """Let bytes count from here on: the caller is known."""
        self._earns = True
        self.left = self._timeout

    def waited(self, seconds: float, transferred: int) -> None:
        """Subtract a wait, and add what the bytes that ended it are worth."""
        worth = transferred / self._rate if self._earns else 0.0
        self.left = min(self.left - seconds + worth, self._timeout)
