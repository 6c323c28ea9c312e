"""The callers of a front: which cells know a key, and the tenant that they say it is of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Final

import msgspec

from lowtide.cells.model import TENANT_PATH
from lowtide.cells.upstream import Question
from lowtide.core.errors import Unavailable
from lowtide.http.connections import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flask import Request

    from lowtide.cells.model import Cells, Report
    from lowtide.cells.upstream import Answer, Upstream
    from lowtide.http.connections import Patience


_KEYS_SECONDS: Final = 60.0
_SILENT_SECONDS: Final = 2.0
_MAX_KEYS: Final = 10_000
_STRANGERS: Final = 4
_STRANGER_SECONDS: Final = 1.0


class _Tenant(msgspec.Struct):
    tenant: str


@dataclass(frozen=True, slots=True)
class Homes:
    """The tenant of a key, the cells that know the key, and those that did not say; valid until.

    Cells that were `away` were not asked: it is valid until one of them is back. `refusal` is a cell's
    answer to a key that no cell knows.
    """

    until: float
    tenant: str
    cells: frozenset[int]
    silent: frozenset[int]
    away: frozenset[int]
    refusal: Answer | None = None


class Refused(Exception):
    """No cell knows the caller's key; `answer` is what one says."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class Callers:
    """What cells say about callers' keys, which is forgotten within a minute."""

    def __init__(
        self,
        cells: Cells,
        reports: Callable[[], Mapping[int, Report]],
        upstream: Upstream,
        timer: Callable[[], float],
    ) -> None:
        self._cells = cells
        self._reports = reports
        self._upstream = upstream
        self._timer = timer
        self._homes: dict[bytes, Homes] = {}
        self._unknown: dict[bytes, Homes] = {}
        self._strangers = BoundedSemaphore(_STRANGERS)

    def homes(self, request: Request) -> Homes:
        """Return the tenant and the cells of the caller's key, which they are asked for once a minute.

        Raises Unavailable if there are too many new callers, or if a cell that does not answer may know
        the key that no other knows: a client tries again, and would give up after a 401.
        """
        homes = self._found(request)
        unasked = homes.away | homes.silent
        if unasked and not homes.cells and "Authorization" in request.headers:
            names = [cell.name for cell in self._cells.cells if cell.number in unasked]
            raise Unavailable(
                f"No cell that answers knows this key, and {', '.join(names)} does not answer now: try "
                "again, or check the key."
            )
        return homes

    def _found(self, request: Request) -> Homes:
        """Look up a key; an unknown one costs a question to every cell: only a few at a time."""
        key = hashlib.sha256(request.headers.get("Authorization", "").encode()).digest()
        if (homes := self._current(key)) is not None:
            return homes
        if key in self._homes:
            return self._looked_up(request, key)
        if not self._strangers.acquire(timeout=_STRANGER_SECONDS):
            raise Unavailable("Too many callers are new here now: try again.")
        try:
            # Another call of the caller may have asked meanwhile.
            return self._current(key) or self._looked_up(request, key)
        finally:
            self._strangers.release()

    def _current(self, key: bytes) -> Homes | None:
        """Return what is known of a key; None if that is too old."""
        homes = self._homes.get(key) or self._unknown.get(key)
        if homes is None or self._timer() >= homes.until:
            return None
        return homes if homes.away.isdisjoint(self._reports()) else None

    def _looked_up(self, request: Request, key: bytes) -> Homes:
        """Ask all cells for the caller's key."""
        known = self._homes.get(key)
        now = self._timer()
        question = Question("GET", TENANT_PATH, b"", Question.of(request).headers)
        reports = self._reports()
        asked = [cell for cell in self._cells.cells if cell.number in reports]
        tenant = "" if known is None else known.tenant
        cells = set() if known is None else set(known.cells)
        silent = set()
        refusal = None
        for cell, answer in self._upstream.ask_all(asked, question):
            if answer is not None and answer.status == 200:
                tenant = msgspec.json.decode(answer.content, type=_Tenant).tenant
                cells.add(cell.number)
            elif answer is not None and answer.status == 401:
                refusal = answer
                cells.discard(cell.number)
            else:
                silent.add(cell.number)
        away = {cell.number for cell in self._cells.cells} - reports.keys() - cells
        is_certain = cells and not silent - cells
        homes = Homes(
            now + (_KEYS_SECONDS if is_certain else _SILENT_SECONDS),
            tenant,
            frozenset(cells),
            frozenset(silent - cells),
            frozenset(away),
            refusal,
        )
        if cells:
            _keep(self._homes, key, homes)
        elif refusal is not None:
            # Apart: made-up keys displace no others.
            self._homes.pop(key, None)
            _keep(self._unknown, key, homes)
        return homes

    def welcome(self, request: Request) -> Homes:
        """Give a caller whose key some cell knows the time that a large body needs.

        Raises Refused for another, whose body is not waited for.
        """
        homes = self.homes(request)
        if not homes.cells and homes.refusal is not None:
            raise Refused(homes.refusal)
        if not homes.cells:
            raise Unavailable("No cell answers now: try again.")
        patience: Patience | None = request.environ.get(PATIENCE)
        if patience is not None:
            patience.earn()
        return homes


def _keep(known: dict[bytes, Homes], key: bytes, homes: Homes) -> None:
    if len(known) >= _MAX_KEYS:
        known.clear()
    known[key] = homes
