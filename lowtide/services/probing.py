"""Asking the parts of the installation whether they answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lowtide.domain.errors import LowtideError
from lowtide.domain.overview import Reachability

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime


class Probing:
    """Keeps what each part answered last; a probe raises a LowtideError when its part does not."""

    def __init__(
        self,
        probes: Mapping[str, Callable[[], None]],
        *,
        clock: Callable[[], datetime],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._probes = probes
        self._clock = clock
        self._timer = timer
        self._found: dict[str, Reachability] = {}

    @property
    def found(self) -> Mapping[str, Reachability]:
        """What each part answered last; a part that was never asked is missing."""
        return self._found

    def probe(self) -> None:
        """Ask every part, one after the other."""
        for name, probe in self._probes.items():
            start = self._timer()
            problem = None
            try:
                probe()
            except LowtideError as error:
                problem = error.message
            latency = self._timer() - start
            self._found[name] = Reachability(self._clock(), latency, problem)
