"""Lookups by id, custom_id, user and metadata, each by an index.

A search of one tenant has the tenant as a condition: row-level security alone would be a filter on
the rows of all tenants. A search of all tenants looks each one up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from lowtide.batches.model import BatchStatus
from lowtide.batches.request_store import WITH_DATA
from lowtide.core.ids import (
    BatchId,
    FileId,
    format_batch_id,
    format_file_id,
    format_request_id,
)
from lowtide.search.model import Kind, Match, MatchedBatch
from lowtide.tenants.sign_in import reading_as

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection, Engine, TextClause

    from lowtide.core.ids import TenantId
    from lowtide.search.model import SearchQuery


_BATCH = "b.id AS batch_id, b.user_id, b.status, b.created_at"
_BATCHES = f"""
SELECT {_BATCH}, {{tenant_name}} AS tenant_name FROM batches b
WHERE {{of_tenant}} b.id BETWEEN :first AND :last ORDER BY b.id DESC LIMIT :limit
"""  # noqa: S608
_FILES = f"""
SELECT f.id, f.filename, {_BATCH}, {{tenant_of_file}} AS tenant_name
FROM (SELECT * FROM files b WHERE {{of_tenant}} id BETWEEN :first AND :last
  ORDER BY id DESC LIMIT :limit) f
LEFT JOIN LATERAL (
  (SELECT * FROM batches WHERE input_file_id = f.id ORDER BY id DESC LIMIT 1)
  UNION ALL SELECT * FROM batches WHERE output_file_id = f.id
  UNION ALL SELECT * FROM batches WHERE error_file_id = f.id
  LIMIT 1) b ON true
ORDER BY f.id DESC
"""  # noqa: S608
# The ids of requests start with that of their batch.
_REQUESTS = f"""
SELECT r.line, r.custom_id, {_BATCH}, {{tenant_name}} AS tenant_name
FROM (SELECT * FROM batches b WHERE {{of_tenant}} id BETWEEN :first AND :last AND total > 0
    AND data_ended_at IS NULL
  ORDER BY id DESC LIMIT :limit) b
CROSS JOIN LATERAL (
  SELECT line, custom_id FROM requests
  WHERE batch_id = b.id AND line BETWEEN :first_line AND :last_line ORDER BY line LIMIT :limit) r
ORDER BY b.id DESC, r.line LIMIT :limit
"""  # noqa: S608
_TERMS = f"""
SELECT t.field, t.value, {_BATCH}, {{tenant_name}} AS tenant_name
FROM (
  SELECT t.* FROM {{tenants}} o CROSS JOIN LATERAL (
    SELECT batch_id, field, value FROM batch_terms
    WHERE tenant_id = o.id AND value >= :text AND value < :beyond
    ORDER BY value, batch_id DESC LIMIT :limit) t
  ORDER BY t.value, t.batch_id DESC LIMIT :limit) t
CROSS JOIN LATERAL (SELECT * FROM batches WHERE id = t.batch_id OFFSET 0) b
ORDER BY t.value, b.id DESC
"""  # noqa: S608
# Requests that are not indexed yet are those of the few segments in the backlog.
_CUSTOM_IDS = f"""
SELECT c.line, c.custom_id, {_BATCH}, {{tenant_name}} AS tenant_name
FROM (
  SELECT * FROM (
    SELECT c.* FROM {{tenants}} o CROSS JOIN LATERAL (
      SELECT batch_id, line, custom_id FROM custom_ids
      WHERE tenant_id = o.id AND custom_id >= :text AND custom_id < :beyond AND {WITH_DATA}
      ORDER BY custom_id, batch_id DESC LIMIT :limit) c
    UNION ALL
    SELECT r.* FROM (
      SELECT batch_id, first_line, last_line FROM search_backlog b WHERE {{of_tenant}} true) w
    CROSS JOIN LATERAL (
      SELECT batch_id, line, custom_id FROM requests
      WHERE batch_id = w.batch_id AND line BETWEEN w.first_line AND w.last_line
        AND custom_id COLLATE "C" >= :text AND custom_id COLLATE "C" < :beyond
      ORDER BY custom_id COLLATE "C" LIMIT :limit) r
  ) either
  ORDER BY custom_id COLLATE "C", batch_id DESC LIMIT :limit) c
CROSS JOIN LATERAL (SELECT * FROM batches WHERE id = c.batch_id OFFSET 0) b
ORDER BY c.custom_id COLLATE "C", b.id DESC
"""  # noqa: S608
_ONE_TENANT: Final = {
    "tenants": "(SELECT cast(:tenant AS uuid) AS id)",
    "of_tenant": "b.tenant_id = :tenant AND",
    "tenant_name": "cast(NULL AS text)",
    "tenant_of_file": "cast(NULL AS text)",
}
_ALL_TENANTS: Final = {
    "tenants": "tenants",
    "of_tenant": "",
    "tenant_name": "(SELECT name FROM tenants WHERE id = b.tenant_id)",
    "tenant_of_file": "(SELECT name FROM tenants WHERE id = f.tenant_id)",
}


def _statements(parts: dict[str, str]) -> dict[str, str]:
    return {
        "batches": _BATCHES.format(**parts),
        "files": _FILES.format(**parts),
        "requests": _REQUESTS.format(**parts),
        "terms": _TERMS.format(**parts),
        "custom_ids": _CUSTOM_IDS.format(**parts),
    }


OF_TENANT: Final = _statements(_ONE_TENANT)
"""The statements of a search of one tenant."""
OF_ALL: Final = _statements(_ALL_TENANTS)
"""The statements of a search of all tenants."""
_OF_TENANT, _OF_ALL = (
    {name: text(statement) for name, statement in statements.items()}
    for statements in (OF_TENANT, OF_ALL)
)


class SearchStore:
    """Find batches, files and requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, scope: TenantId | None, query: SearchQuery, *, limit: int) -> Sequence[Match]:
        """Return up to `limit` matches of each lookup, exact ones first, then newest first."""
        with reading_as(self._engine, scope) as connection:
            lookups = _Lookups(connection, scope, query, limit)
            return [*lookups.batches(), *lookups.files(), *lookups.requests()]


class _Lookups:
    """The lookups of one search, in one transaction."""

    def __init__(
        self, connection: Connection, scope: TenantId | None, query: SearchQuery, limit: int
    ) -> None:
        self._connection = connection
        self._query = query
        self._statements: dict[str, TextClause] = _OF_ALL if scope is None else _OF_TENANT
        self._common: dict[str, object] = {"limit": limit}
        if scope is not None:
            self._common["tenant"] = scope

    def batches(self) -> Iterator[Match]:
        query = self._query
        if (ids := query.batches) is not None:
            for row in self._rows("batches", first=ids.first, last=ids.last):
                id_ = format_batch_id(row.batch_id)
                yield _match(row, Kind.BATCH, id_, "id", id_, is_exact=ids.is_exact)
        for row in self._rows("terms", text=query.text, beyond=query.beyond):
            id_, is_exact = format_batch_id(row.batch_id), row.value == query.text
            yield _match(row, Kind.BATCH, id_, row.field, row.value, is_exact=is_exact)

    def files(self) -> Iterator[Match]:
        if (ids := self._query.files) is None:
            return
        for row in self._rows("files", first=ids.first, last=ids.last):
            id_ = format_file_id(FileId(row.id))
            yield _match(row, Kind.FILE, id_, "id", id_, is_exact=ids.is_exact, name=row.filename)

    def requests(self) -> Iterator[Match]:
        query = self._query
        if (range_ := query.requests) is not None:
            ids = range_.batches
            rows = self._rows(
                "requests",
                first=ids.first,
                last=ids.last,
                first_line=range_.first,
                last_line=range_.last,
            )
            for row in rows:
                id_ = format_request_id(row.batch_id, row.line)
                yield _request(row, "id", id_, is_exact=range_.is_exact)
        for row in self._rows("custom_ids", text=query.text, beyond=query.beyond):
            is_exact = row.custom_id == query.text
            yield _request(row, "custom_id", row.custom_id, is_exact=is_exact)

    def _rows(self, name: str, **parameters: object) -> Sequence[Any]:
        return self._connection.execute(self._statements[name], self._common | parameters).all()


def _request(row: Any, field: str, value: str, *, is_exact: bool) -> Match:
    id_ = format_request_id(row.batch_id, row.line)
    return _match(
        row, Kind.REQUEST, id_, field, value, is_exact=is_exact, name=row.custom_id, line=row.line
    )


def _match(
    row: Any,
    kind: Kind,
    id_: str,
    field: str,
    value: str,
    *,
    is_exact: bool,
    name: str | None = None,
    line: int | None = None,
) -> Match:
    batch = None
    if row.batch_id is not None:
        status = BatchStatus(row.status)
        batch = MatchedBatch(BatchId(row.batch_id), row.user_id, status, row.created_at)
    return Match(kind, id_, field, value, is_exact, batch, name, line, row.tenant_name)
