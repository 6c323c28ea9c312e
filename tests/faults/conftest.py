"""Stacks and databases for fault tests."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conftest import shared_database, world
from tests.e2e.conftest import pytest_runtest_makereport
from tests.e2e.stacks import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StackFactory

__all__ = ["make_stack", "pytest_runtest_makereport", "shared_database", "world"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this package as slow."""
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def make_stack() -> Iterator[StackFactory]:
    """Start a stack with its own settings; it runs until the module's last test."""
    with ExitStack() as block:
        yield lambda settings: block.enter_context(running(settings))


@pytest.fixture(scope="session")
def database_name() -> str:
    """The name of this package's database."""
    return "shared_faults"
