"""docs/compatibility.md says what the conformance suite proves."""

from __future__ import annotations

from docs.compatibility import page
from docs.generate import DOCS


def test_the_page_is_current() -> None:
    assert (DOCS / "compatibility.md").read_text(encoding="utf-8") == page(), "run: make docs"
