"""Whether a process is ready, within a moment, also while what it depends on does not answer."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from lowtide.domain.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 0.7
"""The longest that a probe is kept waiting, so that it is answered within a second."""


class Readiness:
    """Runs a check once at a time, however many ask, in a thread that may hang.

    Example:
        Readiness(check_database).require()
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._current: Future[None] | None = None

    def require(self) -> None:
        """Raise what the check raises, or Unavailable when it takes too long."""
        current = self.ask()
        try:
            current.result(SECONDS)
        except TimeoutError as error:
            raise too_late() from error

    def ask(self) -> Future[None]:
        """Return the result to come: of the check that runs, or of a new one."""
        with self._lock:
            if self._current is None or self._current.done():
                self._current = Future()
                # A daemon: one that hangs must not hold up the end of the process.
                threading.Thread(
                    target=self._run, args=(self._current,), daemon=True, name="readiness"
                ).start()
            return self._current

    def _run(self, current: Future[None]) -> None:
        try:
            self._check()
        except BaseException as error:  # noqa: BLE001 - raised again for who asked
            current.set_exception(error)
        else:
            current.set_result(None)


def too_late() -> Unavailable:
    """Return the error for a check that has not come back."""
    return Unavailable("What this process needs does not answer at the moment: try again.")
