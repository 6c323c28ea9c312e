"""Filters of batches, requests and dead letters in page URLs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlencode

from lowtide.batches.model import BatchStatus, RequestStatus, SlaState
from lowtide.batches.views import BatchFilter, BatchOrder, parse_mark
from lowtide.core.errors import InvalidRequest, NotFound
from lowtide.core.ids import format_batch_id, parse_batch_id
from lowtide.dead_letters.model import MESSAGE_LENGTH, LetterFilter, LetterState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.batches.views import BatchMark
    from lowtide.core.ids import BatchId, TenantId


PATH: Final = "/batches"
ORDERS: Final[Mapping[BatchOrder, str]] = {
    BatchOrder.ACTIVE: "Active first",
    BatchOrder.DEADLINE: "Earliest deadline first",
    BatchOrder.NEWEST: "Newest first",
    BatchOrder.OLDEST: "Oldest first",
}
_MAX_LENGTH: Final = 256
_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class BatchQuery:
    """The filters, order and cursor of the batch list; invalid URL parameters are ignored."""

    statuses: tuple[BatchStatus, ...] = ()
    sla: tuple[SlaState, ...] = ()
    user: str = ""
    tenant: str = ""
    order: BatchOrder = BatchOrder.NEWEST
    after: str = ""
    all_failed: bool = False
    ended_lately: bool = False

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> BatchQuery:
        """Parse URL parameters."""
        order = _choices(BatchOrder, parameters.get("order", ""))
        return cls(
            statuses=_choices(BatchStatus, parameters.get("status", "")),
            sla=_choices(SlaState, parameters.get("sla", "")),
            user=clean(parameters.get("user", "")),
            tenant=clean(parameters.get("tenant", "")),
            order=order[0] if order else BatchOrder.NEWEST,
            after=str(parse_mark(parameters.get("after", "")) or ""),
            all_failed=parameters.get("all_failed") == "1",
            ended_lately=parameters.get("ended") == "24h",
        )

    @property
    def narrows(self) -> bool:
        """True if any filter is set."""
        return replace(self, order=BatchOrder.NEWEST, after="") != BatchQuery()

    def address(self) -> str:
        """Return the URL of this query."""
        parameters = {
            "status": ",".join(self.statuses),
            "sla": ",".join(self.sla),
            "user": self.user,
            "tenant": self.tenant,
            "all_failed": "1" if self.all_failed else "",
            "ended": "24h" if self.ended_lately else "",
            "order": "" if self.order is BatchOrder.NEWEST else self.order.value,
            "after": self.after,
        }
        query_string = urlencode(
            {name: value for name, value in parameters.items() if value}, safe=","
        )
        return f"{PATH}?{query_string}" if query_string else PATH

    def filter(self, tenants: Mapping[TenantId, str]) -> BatchFilter:
        """Return the filter with the tenant's id; raises NotFound for an unknown tenant."""
        tenant_id = None
        if self.tenant:
            matches = [tenant for tenant, name in tenants.items() if name == self.tenant]
            if not matches:
                raise NotFound(f"Tenant {self.tenant!r} not found.")
            tenant_id = matches[0]
        return BatchFilter(
            frozenset(self.statuses),
            frozenset(self.sla),
            self.user,
            tenant_id,
            self.all_failed,
            self.ended_lately,
        )

    @property
    def mark(self) -> BatchMark | None:
        """The end of the previous page."""
        return parse_mark(self.after)

    def behind(self, after: str) -> BatchQuery:
        """Return the same query after a cursor; an empty one is the first page."""
        return replace(self, after=after)


def clean(text: str) -> str:
    """Return text that PostgreSQL accepts: without U+0000, stripped, at most 256 characters."""
    return text.replace("\x00", "").strip()[:_MAX_LENGTH]


def _choices(kind: type[_Choice], text: str) -> tuple[_Choice, ...]:
    values = text.split(",")
    return tuple(choice for choice in kind if choice.value in values)


@dataclass(frozen=True, slots=True)
class LineQuery:
    """The requests of a batch that a page shows.

    `dead_lettered` narrows failed requests to dead letters; `custom_id` is a prefix; `line` is the
    line of the request that is open in the drawer.
    """

    batch: BatchId
    status: RequestStatus | None = None
    dead_lettered: bool = False
    custom_id: str = ""
    after: int = 0
    line: int | None = None

    @classmethod
    def read(cls, batch: BatchId, parameters: Mapping[str, str]) -> LineQuery:
        """Parse URL parameters; invalid ones are ignored."""
        status = next(iter(_choices(RequestStatus, parameters.get("status", ""))), None)
        return cls(
            batch,
            status,
            status is RequestStatus.FAILED and parameters.get("dead_lettered") == _TRUE,
            clean(parameters.get("custom_id", "")),
            _number(parameters.get("after", "")) or 0,
            _number(parameters.get("line", "")),
        )

    def address(self) -> str:
        """Return the URL of this query."""
        parameters = {
            "status": "" if self.status is None else self.status.value,
            "dead_lettered": _TRUE if self.dead_lettered else "",
            "custom_id": self.custom_id,
            "after": str(self.after or ""),
            "line": "" if self.line is None else str(self.line),
        }
        query_string = urlencode({name: value for name, value in parameters.items() if value})
        path = f"{PATH}/{format_batch_id(self.batch)}"
        return f"{path}?{query_string}" if query_string else path

    def only(self, status: RequestStatus | None, *, dead_lettered: bool = False) -> LineQuery:
        """Return the first page of the requests in a state; None is all of them."""
        return replace(self, status=status, dead_lettered=dead_lettered, after=0, line=None)


_TRUE: Final = "true"


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


ANY: Final = "all"
STATES: Final[Mapping[str, str]] = {
    **{state.value: state.value.capitalize() for state in LetterState},
    ANY: "All states",
}


@dataclass(frozen=True, slots=True)
class LetterQuery:
    """The filters of the dead letters; `filter` validates them."""

    tenant: str = ""
    batch: str = ""
    code: str = ""
    state: str = LetterState.OPEN.value
    message: str = ""

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> LetterQuery:
        """Parse URL parameters."""
        return cls(
            tenant=parameters.get("tenant", "")[:_MAX_LENGTH],
            batch=parameters.get("batch_id", "").strip()[:_MAX_LENGTH],
            code=parameters.get("error_code", "").strip()[:_MAX_LENGTH],
            state=parameters.get("state") or LetterState.OPEN.value,
            message=parameters.get("error_message", "")[:MESSAGE_LENGTH],
        )

    def filter(self) -> LetterFilter:
        """Return the validated filter; raises InvalidRequest."""
        batch = parse_batch_id(self.batch) if self.batch else None
        if self.batch and batch is None:
            raise InvalidRequest(f"{self.batch[:100]!r} is not a batch id: use batch_….")
        if "\x00" in self.code + self.message:
            raise InvalidRequest("error_code and error_message must not contain U+0000.")
        if self.state not in STATES:
            raise InvalidRequest(f"state must be one of {', '.join(STATES)}.")
        state = None if self.state == ANY else LetterState(self.state)
        return LetterFilter(batch, self.code or None, state, self.message or None)

    def chosen_tenant(self, tenants: Mapping[TenantId, str]) -> TenantId | None:
        """Return the named tenant, the only one, or None for all of several; raises NotFound."""
        for tenant, name in tenants.items():
            if self.tenant == name or (not self.tenant and len(tenants) == 1):
                return tenant
        if not self.tenant and tenants:
            return None
        raise NotFound(f"Tenant {self.tenant[:100]!r} not found.")

    def address(self, path: str, **more: str) -> str:
        """Return the URL of this query without default values; `more` are further parameters."""
        parts = {
            **more,
            "tenant": self.tenant,
            "batch_id": self.batch,
            "error_code": self.code,
            "error_message": self.message,
            "state": "" if self.state == LetterState.OPEN else self.state,
        }
        query = urlencode({name: value for name, value in parts.items() if value})
        return f"{path}?{query}" if query else path
