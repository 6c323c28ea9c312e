"""Query plans as lists of nodes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Engine


def plan_nodes(engine: Engine, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """Return the nodes of the plan for these values, like the driver's statements are planned."""
    return _nodes(engine, f"EXPLAIN (FORMAT JSON) {sql}", parameters)


def executed_nodes(engine: Engine, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """Run a statement; return the nodes of its plan with actual rows."""
    return _nodes(engine, f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters)


def _nodes(engine: Engine, explain: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        plan = connection.execute(text(explain), parameters).scalar_one()
        connection.rollback()
    nodes: list[dict[str, Any]] = []
    pending = [(plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]]
    while pending:
        node = pending.pop()
        nodes.append(node)
        pending += node.get("Plans", [])
    return nodes
