"""The package's database."""

from __future__ import annotations

import pytest

from tests.postgres.worlds import shared_database, world

__all__ = ["shared_database", "world"]


@pytest.fixture(scope="session")
def worker_id_of_package() -> str:
    """The name of this package's database."""
    return "services"
