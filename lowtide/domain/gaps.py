"""Models that a worker's engine lacks or cannot run: their requests are not claimed meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lowtide.domain.breaker import probe_delay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowtide.domain.pings import Ping

_FORGET: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Gap:
    """A missing model: when to ask again, how often it was asked.

    Once an answer leaves it open it is `tried`: requests of the model may be claimed again.
    """

    ping: Ping
    ask_at: float
    asked: int = 1
    tried: bool = False


class ModelGaps:
    """Missing models by name, "" where requests name none; times in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._gaps: dict[str, _Gap] = {}

    def __bool__(self) -> bool:
        """Whether any is known, be it tried again."""
        return bool(self._gaps)

    @property
    def missing(self) -> frozenset[str]:
        """The models whose requests are not claimed."""
        return frozenset(model for model, gap in self._gaps.items() if not gap.tried)

    @property
    def times(self) -> list[float]:
        """When something is due."""
        return [gap.ask_at for gap in self._gaps.values()]

    def miss(self, ping: Ping, now: float) -> bool:
        """Note that the model of a request is missing; return whether that is new."""
        gap = self._gaps.get(ping.model or "")
        if gap is not None and not gap.tried:
            return False
        asked = 0 if gap is None else gap.asked
        self._gaps[ping.model or ""] = _Gap(ping, now + probe_delay(asked), asked + 1)
        return True

    def due(self, now: float) -> Ping | None:
        """Return what to ask now; forget what was tried long ago."""
        for model, gap in list(self._gaps.items()):
            if now >= gap.ask_at:
                if not gap.tried:
                    return gap.ping
                del self._gaps[model]
        return None

    def still_missing(self, ping: Ping, now: float) -> None:
        """Note that it was asked in vain."""
        gap = self._gaps.get(ping.model or "")
        if gap is not None:
            later = replace(gap, ask_at=now + probe_delay(gap.asked), asked=gap.asked + 1)
            self._gaps[ping.model or ""] = later

    def found(self, models: Iterable[str | None], now: float) -> bool:
        """Note that the engine runs models; return whether any was missing."""
        back = {model or "" for model in models} & self.missing
        for model in back:
            self._gaps[model] = replace(self._gaps[model], ask_at=now + _FORGET, tried=True)
        return bool(back)

    def forget(self, ping: Ping) -> None:
        """Forget what a request's model was."""
        self._gaps.pop(ping.model or "", None)

    def clear(self) -> None:
        """Forget all."""
        self._gaps.clear()
