"""`make house`: the shape of the code, counted from its source."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lowtide", "portal")
QUESTIONS = ("What", "Who", "How", "Where", "When", "Whether", "Why", "Which")


@dataclass(frozen=True, slots=True)
class Module:
    """A module: its name, its lines, its syntax tree, and the modules of ours that it imports."""

    name: str
    lines: int
    tree: ast.Module
    imports: frozenset[str]


def modules() -> dict[str, Module]:
    """Return every module by its name, without migrations."""
    paths = {
        _name(path): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if "migrations" not in path.parts
    }
    found = {}
    for name, path in paths.items():
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        found[name] = Module(
            name, len(source.splitlines()), tree, frozenset(_imported(tree, paths.keys()) - {name})
        )
    return found


def circles(found: dict[str, Module]) -> list[list[str]]:
    """Return the groups of modules that import each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(found[name].imports):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for name in found:
        if name not in index:
            visit(name)
    return groups


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.Module, names: set[str]) -> set[str]:
    """Return what a module imports of ours, also inside functions and for types alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & names
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner} if inner in names else {node.module} & names
    return found
