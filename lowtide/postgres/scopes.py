"""Transactions for who looks at the portal: one tenant's, or an operator's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lowtide.postgres.connections import acting_for, begin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from lowtide.domain.ids import TenantId


@contextmanager
def looking(engine: Engine, scope: TenantId | None) -> Iterator[Connection]:
    """Open a transaction that sees one tenant, or with None all that the role may see."""
    with begin(engine) if scope is None else acting_for(engine, scope) as connection:
        yield connection
