"""Query plans as lists of nodes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Engine


def plan_nodes(
    engine: Engine, sql: str, *, analyze: bool = False, **parameters: Any
) -> list[dict[str, Any]]:
    """Return the nodes of the plan for these values, like the driver's statements are planned.

    With `analyze`, the statement runs, and nodes have actual rows.
    """
    explain = f"EXPLAIN (FORMAT JSON{', ANALYZE' if analyze else ''}) {sql}"
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
