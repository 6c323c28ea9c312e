"""docs/compatibility.md against the conformance suite."""

from __future__ import annotations

from docs.compatibility import page
from docs.generate import DOCS


def test_compatibility_page_is_current() -> None:
    assert (DOCS / "compatibility.md").read_text(encoding="utf-8") == page(), "run: make docs"
