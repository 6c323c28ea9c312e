"""The explanation of a batch to those who may see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.explain.model import explain

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.explain.model import Explanation
    from lowtide.explain.store import FactStore


class Explainer:
    """Explains batches."""

    def __init__(self, facts: FactStore) -> None:
        self._facts = facts

    def explain(self, scope: TenantId | None, batch: BatchId) -> Explanation:
        """Return what a batch waits for, or what limited it; raises NotFound.

        `scope` is the tenant that asks, None for an operator of all.
        """
        return explain(self._facts.read(scope, batch))
