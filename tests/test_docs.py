"""The documents match the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from docs.generate import DOCS, PAGES
from docs.screenshots import shown
from lowtide.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
MARKDOWN = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "functions/*/*.md",
        "knative/*.md",
        "keda/*.md",
        "monitoring/*.md",
    )
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_have_targets(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_images_are_exactly_those_shown_in_docs() -> None:
    pictures = {path.name: path.stat().st_size for path in (DOCS / "images").glob("*.png")}
    assert set(pictures) == shown()
    assert max(pictures.values()) < 100_000


def test_modules_named_in_architecture_exist() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+/[a-z_]+\.py)`", page))
    assert len(named) > 40
    assert [
        it for it in named if not ((ROOT / it).exists() or (ROOT / "lowtide" / it).exists())
    ] == []


def test_make_targets_named_in_readme_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)\b", (ROOT / "README.md").read_text(encoding="utf-8")))
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named <= targets


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/dead-letters.md", "docs/operations.md", "docs/simulated-engine.md"],
)
def test_lowtide_accepts_documented_commands(page: str) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.rpartition(" -- ")[2] for block in blocks for line in block.splitlines()]
    shown = [line for line in lines if line.startswith("lowtide ")]
    assert shown
    for line in shown:
        command: Any = get_command(app)
        words = shlex.split(line)[1:]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, line


def test_each_function_has_its_three_files() -> None:
    folders = [path for path in (ROOT / "functions").iterdir() if path.is_dir()]
    folders = [path for path in folders if path.name != "__pycache__"]
    assert len(folders) == 9
    for folder in folders:
        assert {path.name for path in folder.iterdir()} >= {"main.py", "func.yaml", "README.md"}
