"""When batches will be done."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from lowtide.domain.statuses import BatchStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.domain.batches import Batch
    from lowtide.domain.outlook import Outlook
    from lowtide.ports import OutlookSource

_MAX_AGE_SECONDS = 2.0


class Forecaster:
    """Tells when batches will be done. Clients poll: a look at all tenants serves for 2 seconds.

    `prior` is the rate of a replica that was never measured, in lines a second.
    """

    def __init__(
        self,
        source: OutlookSource,
        *,
        prior: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._prior = prior
        self._timer = timer
        self._seen: tuple[float, Outlook] | None = None

    def with_eta(self, batch: Batch) -> Batch:
        """Return the batch with its eta."""
        if batch.status is not BatchStatus.IN_PROGRESS:
            return batch
        return replace(batch, eta=self._outlook().eta(batch, self._prior))

    def _outlook(self) -> Outlook:
        now = self._timer()
        if self._seen is None or now - self._seen[0] > _MAX_AGE_SECONDS:
            self._seen = now, self._source.look()
        return self._seen[1]
