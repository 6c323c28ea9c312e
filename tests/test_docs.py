"""The documents match the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import DOCS, PAGES
from docs.screenshots import shown
from tests.docs.pages import pages

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


@pytest.mark.parametrize("page", pages())
def test_relative_links_have_targets(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_readme_links_every_page_once() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    index = LINK.findall(text[text.index("## Where to read on") :])
    linked = [link for link in index if link.startswith("docs/")]
    pages_of_docs = {f"docs/{path.name}" for path in DOCS.glob("*.md")} | {"docs/adr/README.md"}
    assert sorted(linked) == sorted(pages_of_docs)


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


def test_each_function_has_its_three_files() -> None:
    folders = [path for path in (ROOT / "functions").iterdir() if path.is_dir()]
    folders = [path for path in folders if path.name != "__pycache__"]
    assert len(folders) == 10
    for folder in folders:
        assert {path.name for path in folder.iterdir()} >= {"main.py", "func.yaml", "README.md"}
