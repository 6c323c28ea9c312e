"""Which dead letters a page shows, as its address says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from lowtide.domain.dead_letters import LetterFilter, LetterState
from lowtide.domain.errors import InvalidRequest, NotFound
from lowtide.domain.ids import parse_batch_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.domain.ids import TenantId

ANY: Final = "all"
STATES: Final[Mapping[str, str]] = {
    **{state.value: state.value.capitalize() for state in LetterState},
    ANY: "All states",
}
_LONGEST: Final = 256


@dataclass(frozen=True, slots=True)
class LetterQuery:
    """What a visitor typed or linked to; nothing of it is checked before `filter`."""

    tenant: str = ""
    batch: str = ""
    code: str = ""
    state: str = LetterState.OPEN.value

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> LetterQuery:
        """Return the query of an address."""
        return cls(
            tenant=parameters.get("tenant", "")[:_LONGEST],
            batch=parameters.get("batch_id", "").strip()[:_LONGEST],
            code=parameters.get("error_code", "").strip()[:_LONGEST],
            state=parameters.get("state") or LetterState.OPEN.value,
        )

    def filter(self) -> LetterFilter:
        """Return the letters that are meant; raises InvalidRequest."""
        batch = parse_batch_id(self.batch) if self.batch else None
        if self.batch and batch is None:
            raise InvalidRequest(f"{self.batch[:100]!r} is not the id of a batch: use batch_….")
        if "\x00" in self.code:
            raise InvalidRequest("An error code has no U+0000.")
        if self.state not in STATES:
            raise InvalidRequest(f"state must be one of {', '.join(STATES)}.")
        state = None if self.state == ANY else LetterState(self.state)
        return LetterFilter(batch, self.code or None, state)

    def chosen_tenant(self, tenants: Mapping[TenantId, str]) -> TenantId:
        """Return the tenant that is meant, the first one without a name; raises NotFound."""
        for tenant, name in tenants.items():
            if self.tenant in ("", name):
                return tenant
        raise NotFound(f"No tenant {self.tenant[:100]!r}.")

    def address(self, path: str, **more: str) -> str:
        """Return a link that shows the same; what is as usual is left out."""
        parts = {
            **more,
            "tenant": self.tenant,
            "batch_id": self.batch,
            "error_code": self.code,
            "state": "" if self.state == LetterState.OPEN else self.state,
        }
        query = urlencode({name: value for name, value in parts.items() if value})
        return f"{path}?{query}" if query else path
