"""`make house`: metrics of the source code, beside their initial values and goals."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Set

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lowtide", "portal")
QUESTIONS = ("What", "Who", "How", "Where", "When", "Whether", "Why", "Which")
LONGEST_FUNCTION = 50
SMALL = 70
REQUEUE = "A requeue from the portal"
"""The heading in ARCHITECTURE.md of the walk whose modules are counted."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module with its source, its syntax tree and its imports from PACKAGES."""

    name: str
    source: str
    tree: ast.Module
    imports: frozenset[str]

    @property
    def lines(self) -> int:
        """The number of lines, blank lines included."""
        return len(self.source.splitlines())


def modules() -> dict[str, Module]:
    """Return every module except migrations, by name."""
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
        found[name] = Module(name, source, tree, frozenset(_imported(tree, paths.keys()) - {name}))
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


def rows(found: dict[str, Module]) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table: metric, initial value, current value and goal."""
    lines = sorted(module.lines for module in found.values())
    total = sum(lines)
    importers = Counter(other for module in found.values() for other in module.imports)
    alone = [name for name, of in found.items() if importers[name] == 1 and of.lines < SMALL]
    walk = len(walked(REQUEUE))
    circular = circles(found)
    members = sum(map(len, circular))
    share = 100 * sum(map(_import_lines, found.values())) / total
    nodes = [node for module in found.values() for node in ast.walk(module.tree)]
    return [
        ("modules in lowtide/ and portal/, without migrations", "342", f"{len(found)}", "<= 170"),
        (
            "lines of a module: median / 90th percentile",
            "78 / 210",
            f"{median(lines):.0f} / {quantiles(lines, n=10)[8]:.0f}",
            "120-180 / <= 320",
        ),
        ("import statements, share of all lines", "10.4 %", f"{share:.1f} %", "<= 7 %"),
        ("modules with one importer and under 70 lines", "58", f"{len(alone)}", "<= 10"),
        ("modules involved in a requeue from the portal", "about 33", f"{walk}", "<= 10"),
        ("import cycles (modules in them)", "1 (9)", f"{len(circular)} ({members})", "0"),
        ("lines of product code", "33,441", f"{total:,}", "-15 %"),
        ("docstrings that start with a question word", "268", f"{_questions(nodes)}", "0"),
        ("functions over 50 lines", "0", f"{_long_functions(nodes)}", "0"),
        ("`type: ignore`", "0", f"{_matches(found, 'type: ignore')}", "0"),
        ("blanket excepts without a reason", "0", f"{_matches(found, BLANKET)}", "0"),
    ]


def walked(heading: str) -> list[str]:
    """Return the modules of a walk in ARCHITECTURE.md, in order."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition(f"### {heading}\n")[2].partition("\n#")[0]
    return list(
        dict.fromkeys(re.findall(r"`((?:lowtide|portal|functions)/[a-z_/]+\.py)`", section))
    )


BLANKET = r"noqa: BLE001(?! - )"


def _import_lines(module: Module) -> int:
    return sum(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    )


def _questions(nodes: list[ast.AST]) -> int:
    found = 0
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            found += bool(words) and words[0].strip("`'\",.:") in QUESTIONS
    return found


def _long_functions(nodes: list[ast.AST]) -> int:
    return sum(
        (node.end_lineno or node.lineno) - node.lineno + 1 > LONGEST_FUNCTION
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def _matches(found: dict[str, Module], pattern: str) -> int:
    return sum(len(re.findall(pattern, module.source)) for module in found.values())


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.Module, names: Set[str]) -> set[str]:
    """Return the imports among `names`, those in functions and for type checking included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & names
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner} if inner in names else {node.module} & names
    return found


def main() -> None:
    """Print the table."""
    table = [("", "initial", "current", "target"), *rows(modules())]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    main()
