"""Marking of the tests that start a stack as slow."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the report."""
    for item in items:
        if item.path.is_relative_to(FOLDER) and "report" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
