"""Headings: a page has one of the first level, and sections of the second."""

from __future__ import annotations

from html import escape

from nicegui import ui


def heading(text: str, level: int = 2) -> ui.html:
    """Show a heading; whatever its text is, it stays text."""
    return ui.html(escape(text), sanitize=False, tag=f"h{level}")
