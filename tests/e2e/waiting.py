"""Polling with a deadline instead of a guessed sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def until(poll: Callable[[], T], what: str, *, within: float = 60.0, every: float = 0.05) -> T:
    """Return the first truthy result of `poll`; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        if result := poll():
            return result
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(every)
