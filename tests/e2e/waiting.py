"""Waiting for something to be seen, with a deadline instead of a guess."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def until(look: Callable[[], T], what: str, *, within: float = 60.0, every: float = 0.05) -> T:
    """Return the first true answer of `look`; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(every)
