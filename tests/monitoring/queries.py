"""The PromQL expressions in monitoring/, and their metric names."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser
import yaml

from monitoring.generate import CELL_RULES, HERE, RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
# Series that Prometheus itself generates.
BUILT_IN = {"up", "ALERTS"}
# Default counters of NVIDIA's DCGM exporter 4.5.3 (etc/default-counters.csv).
OF_GPUS = {
    "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_POWER_USAGE",
}  # fmt: skip
_VARIABLE = re.compile(r"\$(?:__)?[a-z_]+")
_LABEL_VALUES = re.compile(r"label_values\((.+), \w+\)")


@cache
def rules(*paths: Path) -> list[dict[str, Any]]:
    """Return every rule of these files, or of all."""
    files = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths or (RULES, CELL_RULES)
    ]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """Return the alert rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recordings() -> set[str]:
    """Return the names of the recording rules."""
    return {rule["record"] for rule in rules() if "record" in rule}


@cache
def boards() -> dict[str, dict[str, Any]]:
    """Return the committed dashboards by file name."""
    paths = sorted((HERE / "dashboards" / "json").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def expressions_of(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (panel or variable, expression)."""
    for panel in _panels(board["panels"]):
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if match := _LABEL_VALUES.fullmatch(str(variable.get("query"))):
            yield f"${variable['name']}", match[1]


def filled(expression: str) -> str:
    """Return a panel's expression as Grafana sends it with every variable set to All."""
    return _VARIABLE.sub(lambda match: "5m" if match[0].startswith("$__") else ".*", expression)


def names_in(expression: str) -> set[str]:
    """Return the metrics that an expression selects; raises ValueError for an invalid one."""
    names: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a name in {expression}"
            names.add(node.name)

    promql_parser.walk(promql_parser.parse(filled(expression)), visit)
    return names


@cache
def used_names() -> dict[str, set[str]]:
    """Return the rules, panels and variables that use each metric name."""
    places: dict[str, set[str]] = {}
    for rule in rules():
        for name in names_in(rule["expr"]):
            places.setdefault(name, set()).add(rule.get("alert") or rule["record"])
    for file, board in boards().items():
        for panel, expression in expressions_of(board):
            for name in names_in(expression):
                places.setdefault(name, set()).add(f"{file}: {panel}")
    return places


def exported_names() -> set[str]:
    """Return the exported metric names that rules and panels need."""
    return set(used_names()) - recordings() - BUILT_IN - OF_GPUS


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels") or [])
