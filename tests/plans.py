"""Query plans as lists of nodes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.database.connections import acting_for
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection, Engine

_OF_DAY = re.compile(r"_\d{8}$")


def plan_nodes(engine: Engine, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """Return the nodes of the plan for these values, like the driver's statements are planned."""
    return _nodes(engine, f"EXPLAIN (FORMAT JSON) {sql}", parameters)


def executed_nodes(engine: Engine, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """Run a statement; return the nodes of its plan with actual rows."""
    return _nodes(engine, f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters)


def _nodes(engine: Engine, explain: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    # Without a tenant, the planner would expect that row-level security leaves no row.
    tenant = parameters.get("tenant") or DEFAULT_TENANT
    with acting_for(engine, tenant) as connection:
        plan = connection.execute(text(explain), parameters).scalar_one()
        connection.rollback()
    return nodes_of((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"])


def nodes_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a plan's nodes, with partitions and their indexes under the names of their parents."""
    for name in {"Relation Name", "Index Name"} & plan.keys():
        plan[name] = _OF_DAY.sub("", plan[name])
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes_of(child))]


def stored(connection: Connection, tables: Collection[str]) -> list[str]:
    """Return the names of tables, with all partitions instead of their parents."""
    partitions = connection.execute(text("SELECT parent, name FROM data_partitions")).all()
    parents = {row.parent for row in partitions}
    return sorted({*tables} - parents | {row.name for row in partitions if row.parent in tables})


def vacuum(connection: Connection, tables: Collection[str]) -> None:
    """Vacuum and analyze tables, without empty partitions; leave no dead row.

    VACUUM keeps the rows that an older snapshot sees, such as that of a running autoanalyze.
    """
    started = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    older = text(
        """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
             AND pid <> pg_backend_pid() AND xact_start < :started"""
    )
    until(
        lambda: connection.execute(older, {"started": started}).scalar_one() == 0,
        "all older transactions have ended",
    )
    connection.execute(text(f"VACUUM (ANALYZE) {analyzed(connection, tables)}"))


def analyzed(connection: Connection, tables: Collection[str]) -> str:
    """Return the tables for ANALYZE, without empty partitions.

    Nor does autovacuum analyze them. The planner scans a table that it knows to be empty.
    """
    names = stored(connection, tables)
    sizes = text(
        "SELECT relname FROM pg_class WHERE relname = ANY(:names) AND pg_relation_size(oid) > 0"
    )
    filled = connection.execute(sizes, {"names": names}).scalars()
    return ", ".join(sorted({*filled, *tables}.intersection(names)))
