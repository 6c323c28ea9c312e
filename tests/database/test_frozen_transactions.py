"""A process that freezes in a transaction must not block others forever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.errors import Unavailable
from lowtide.database.connections import begin, connect

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.conftest import Database

REGISTER = text("""
INSERT INTO workers (id, pool, name, expires_at)
VALUES ('00000000-0000-7000-8000-000000000001', 'spot', 'w', now())
""")
TAKE = text("SELECT id FROM workers FOR UPDATE")


def freeze_during_other_transaction(frozen: Engine, other: Engine) -> None:
    with begin(frozen) as connection:
        connection.execute(TAKE)
        with begin(other) as free:
            assert len(free.execute(TAKE).all()) == 1
        connection.execute(TAKE)


def test_locks_of_frozen_transaction_are_freed_and_retry_succeeds(database: Database) -> None:
    frozen, other = connect(database.url("worker"), timeout=0.2), database.engine("worker")
    with begin(other) as connection:
        connection.execute(REGISTER)
    try:
        with pytest.raises(Unavailable):
            freeze_during_other_transaction(frozen, other)
        with begin(frozen) as again:
            assert len(again.execute(TAKE).all()) == 1
    finally:
        frozen.dispose()
