"""Connections with prepared statements: staleness, lost connections, transactions and tenants."""

from __future__ import annotations

import inspect
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from pg8000 import core
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import Pool
from lowtide.database.connections import acting_for, begin, connect
from lowtide.database.prepared import Copied, copying, hot
from lowtide.local.database import engine as admin_engine
from lowtide.local.files import SUPERUSER
from tests.loads import fill
from tests.worlds import World, done, numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from tests.conftest import Database

ALL = hot("SELECT * FROM workers WHERE name = :name")
ADD = hot(
    "INSERT INTO workers (id, pool, name, expires_at) VALUES (gen_random_uuid(), 'spot', :name, now())"
)
ECHO = hot("SELECT cast(:value AS text)")
BACKEND = text("SELECT pg_backend_pid()")
PREPARED = text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%workers%'")


@pytest.fixture
def one(database: Database) -> Iterator[Engine]:
    """A pool of one connection, which every transaction uses."""
    made = connect(database.url("worker"), pool_size=1)
    yield made
    made.dispose()


def _backend(engine: Engine) -> int:
    with begin(engine) as connection:
        return int(connection.execute(BACKEND).scalar_one())


def _names(engine: Engine, name: str = "w") -> list[str]:
    with begin(engine) as connection:
        return [row.name for row in connection.execute(ALL, {"name": name})]


def _add(engine: Engine, name: str = "w") -> None:
    with begin(engine) as connection:
        connection.execute(ADD, {"name": name})


def test_statement_is_prepared_once_per_connection(one: Engine) -> None:
    for _ in range(3):
        assert _names(one) == []
    with begin(one) as connection:
        assert connection.execute(PREPARED).scalar_one() == 1


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="empty"),
        pytest.param(None, id="null"),
        pytest.param("é𝄞 %s :x ?\\ '", id="odd"),
        pytest.param("x" * 3_000_000, id="3 MB"),
    ],
)
def test_values_round_trip_unchanged(one: Engine, value: str | None) -> None:
    for _ in range(2):
        with begin(one) as connection:
            assert connection.execute(ECHO, {"value": value}).scalar_one() == value


def test_deallocated_statement_is_prepared_again(one: Engine) -> None:
    """A connection pooler may deallocate statements: the next use is Unavailable once."""
    _add(one)
    assert _names(one) == ["w"]
    backend = _backend(one)
    with begin(one) as connection:
        connection.execute(text("DEALLOCATE ALL"))
    with pytest.raises(Unavailable):
        _names(one)
    assert _names(one) == ["w"]
    assert _backend(one) == backend


def test_statement_is_prepared_again_after_its_columns_change(
    database: Database, one: Engine
) -> None:
    _add(one)
    assert _names(one) == ["w"]
    with database.engine("owner").begin() as connection:
        connection.execute(text("ALTER TABLE workers ADD COLUMN colour text DEFAULT 'blue'"))
    with pytest.raises(Unavailable):
        _names(one)
    with begin(one) as connection:
        (row,) = connection.execute(ALL, {"name": "w"})
    assert (row.name, row.colour) == ("w", "blue")


def test_migration_during_work_loses_no_result(world: World, database: Database) -> None:
    """Fewer than ten calls are refused, and no result is lost."""
    del world
    own_world = World(database)
    batch = fill(own_world, 30)
    queue = own_world.queue_on(own_world.own_engine("worker"))
    lease = queue.open_lease(Pool.SPOT, "w")
    claims = [*queue.claim(lease, Pool.SPOT, 10)]
    queue.settle(lease, [done(claim) for claim in claims], [])
    with database.engine("owner").begin() as connection:
        for table in ("queued_runs", "claimed_runs", "results", "batches"):
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN colour text"))
    refused = 0
    while own_world.drained(batch) == 0:
        try:
            claims = [*queue.claim(lease, Pool.SPOT, 10)]
            queue.settle(lease, [done(claim) for claim in claims], [])
        except Unavailable:
            refused += 1
            assert refused < 10
    assert own_world.lines("results", batch) == list(range(1, 31))
    assert own_world.row(batch).tallied_completed == 30


@pytest.mark.parametrize("prepared", [True, False])
def test_connection_closed_by_server_is_replaced(
    database: Database, one: Engine, *, prepared: bool
) -> None:
    backend = _backend(one)
    if prepared:
        _names(one)
    server = database.server
    url = server.url(SUPERUSER, server.cluster.password, database.name)
    with admin_engine(url).connect() as admin:
        terminate = text("SELECT pg_terminate_backend(:pid, 5000)")
        assert admin.execute(terminate, {"pid": backend}).scalar_one()
    _add(one)
    assert _names(one) == ["w"]
    assert _backend(one) != backend


def test_connection_closed_in_transaction_is_unavailable_once(
    database: Database, one: Engine
) -> None:
    server = database.server
    url = server.url(SUPERUSER, server.cluster.password, database.name)

    def cut() -> None:
        with begin(one) as connection:
            backend = connection.execute(BACKEND).scalar_one()
            with admin_engine(url).connect() as admin:
                terminate = text("SELECT pg_terminate_backend(:pid, 5000)")
                assert admin.execute(terminate, {"pid": backend}).scalar_one()
            connection.execute(ADD, {"name": "w"})

    with pytest.raises(Unavailable):
        cut()
    assert _names(one) == []


@pytest.mark.parametrize("first", [True, False], ids=["opens the transaction", "in a transaction"])
def test_error_rolls_back_and_next_transaction_works(one: Engine, *, first: bool) -> None:
    broken = hot("SELECT 1 / cast(:zero AS integer)")

    def fail() -> None:
        with begin(one) as connection:
            if not first:
                connection.execute(ADD, {"name": "w"})
            connection.execute(broken, {"zero": 0})

    for _ in range(2):  # unprepared, then prepared
        with pytest.raises(DBAPIError, match="22012"):
            fail()
        assert _names(one) == []
    _add(one)
    assert _names(one) == ["w"]


def test_statement_that_cannot_be_prepared_does_not_break_connection(one: Engine) -> None:
    wrong = hot("SELECT * FROM nowhere WHERE name = :name")
    for _ in range(2):
        with pytest.raises(DBAPIError, match="42P01"), begin(one) as connection:
            connection.execute(wrong, {"name": "w"})
    _add(one)
    assert _names(one) == ["w"]


def test_exception_of_caller_rolls_back(one: Engine) -> None:
    def fail() -> None:
        with begin(one) as connection:
            connection.execute(ADD, {"name": "w"})
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert _names(one) == []


def test_savepoint_rolls_back_only_its_part(one: Engine) -> None:
    with begin(one) as connection:
        connection.execute(ADD, {"name": "kept"})
        part = connection.begin_nested()
        connection.execute(ADD, {"name": "undone"})
        part.rollback()
    assert (_names(one, "kept"), _names(one, "undone")) == (["kept"], [])


def test_changes_are_invisible_before_commit(database: Database, one: Engine) -> None:
    other = database.engine("worker")
    with begin(one) as connection:
        connection.execute(ADD, {"name": "w"})
        assert _names(other) == []
    assert _names(other) == ["w"]


def test_commit_that_becomes_rollback_is_unavailable(one: Engine) -> None:
    """After a swallowed error the server turns COMMIT into ROLLBACK, which must raise."""

    def swallow() -> None:
        with begin(one) as connection:
            connection.execute(ADD, {"name": "w"})
            with pytest.raises(DBAPIError):
                connection.execute(hot("SELECT 1 / cast(:zero AS integer)"), {"zero": 0})

    with pytest.raises(Unavailable):
        swallow()
    assert _names(one) == []


def test_tenant_is_not_carried_over(world: World) -> None:
    """One connection serves all tenants in turn, with the same prepared statements."""
    other = world.tenant("other")
    own_batch, other_batch = world.batch(1), world.batch(1, tenant=other)
    engine = connect(world.database.url("api"), pool_size=1)
    visible = hot("SELECT id FROM batches WHERE total > cast(:lines AS integer)")
    checkouts: list[str] = []
    event.listen(engine, "checkout", lambda *_: checkouts.append("checkout"))
    try:
        for tenant, batch in (
            (DEFAULT_TENANT, own_batch),
            (other, other_batch),
            (DEFAULT_TENANT, own_batch),
        ):
            with acting_for(engine, tenant) as connection:
                assert connection.execute(visible, {"lines": 0}).scalars().all() == [batch]
            with begin(engine) as connection:
                assert connection.execute(visible, {"lines": 0}).scalars().all() == []

        def fail() -> None:
            with acting_for(engine, other) as connection:
                connection.execute(text("SELECT 1 / 0"))

        with pytest.raises(DBAPIError):
            fail()
        with begin(engine) as connection:
            assert connection.execute(visible, {"lines": 0}).scalars().all() == []
    finally:
        engine.dispose()
    assert len(checkouts) == 8


def test_unprepared_statements_share_the_transaction(one: Engine) -> None:
    with begin(one) as connection:
        connection.execute(ADD, {"name": "w"})
        assert connection.execute(text("SELECT name FROM workers")).scalars().all() == ["w"]
        connection.execute(text("DELETE FROM workers"))
        assert connection.execute(ALL, {"name": "w"}).all() == []


def test_claims_reuse_prepared_statements(world: World) -> None:
    fill(world, 20)
    engine = world.own_engine("worker")
    queue = world.queue_on(engine)
    lease = queue.open_lease(Pool.SPOT, "w")
    claimed = [line for _ in range(4) for line in numbers(queue.claim(lease, Pool.SPOT, 5))]
    assert claimed == list(range(1, 21))
    with begin(engine) as connection:
        prepared = text("SELECT count(*), count(DISTINCT statement) FROM pg_prepared_statements")
        assert len(set(connection.execute(prepared).one())) == 1


def test_connection_sets_tcp_nodelay(one: Engine) -> None:
    with one.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        assert raw._usock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (core._write, ["sock", "d"]),
        (core._flush, ["sock"]),
        (core.Context, ["statement", "stream", "columns", "input_funcs"]),
        (core.CoreConnection.prepare_statement, ["self", "statement", "oids"]),
        (core.CoreConnection.handle_messages, ["self", "context"]),
    ],
    ids=lambda it: getattr(it, "__qualname__", ""),
)
def test_private_functions_of_driver_are_unchanged(
    function: Callable[..., object], parameters: list[str]
) -> None:
    assert list(inspect.signature(function).parameters) == parameters, (
        "pg8000 changed: read lowtide/database/prepared.py against its new source, then widen the pin"
    )


def test_driver_has_expected_attributes(one: Engine) -> None:
    with one.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert {"_sock", "_usock", "_transaction_status"} <= set(vars(driver))


NUMBERS = copying("COPY numbers FROM STDIN (FORMAT binary)")
HEAD, END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


def _numbers(*values: int) -> Copied:
    rows = [struct.pack(">hii", 1, 4, value) for value in values]
    return Copied([HEAD, *rows, END])


@pytest.fixture
def counting(one: Engine) -> Iterator[Engine]:
    """The same pool, with a temporary table."""
    with begin(one) as connection:
        connection.execute(text("CREATE TEMPORARY TABLE numbers (n integer CHECK (n > 0))"))
    yield one
    with begin(one) as connection:
        connection.execute(text("DROP TABLE numbers"))


def _sum(engine: Engine) -> int:
    with begin(engine) as connection:
        return int(connection.execute(text("SELECT sum(n) FROM numbers")).scalar_one() or 0)


def test_copied_rows_are_of_the_transaction(counting: Engine) -> None:
    with begin(counting) as connection:
        connection.exec_driver_sql(NUMBERS, (_numbers(1, 2),))
        connection.exec_driver_sql(NUMBERS, (_numbers(*range(3, 50_000)),))
    total = sum(range(50_000))
    assert _sum(counting) == total
    with begin(counting) as connection:
        connection.exec_driver_sql(NUMBERS, (_numbers(1),))
        connection.rollback()
    assert _sum(counting) == total


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_numbers(1, 0, *range(1, 50_000)), id="rejected"),
        pytest.param(Copied([HEAD, b"\x00\x02", END]), id="malformed"),
    ],
)
def test_failed_copy_leaves_the_connection_usable(counting: Engine, data: Copied) -> None:
    backend = _backend(counting)
    with pytest.raises(DBAPIError), begin(counting) as connection:
        connection.exec_driver_sql(NUMBERS, (data,))
    assert _sum(counting) == 0
    with begin(counting) as connection:
        connection.exec_driver_sql(NUMBERS, (_numbers(7),))
    assert (_sum(counting), _backend(counting)) == (7, backend)


def test_copy_of_a_table_that_is_gone_is_an_error(counting: Engine) -> None:
    with pytest.raises(DBAPIError, match="does not exist"), begin(counting) as connection:
        connection.exec_driver_sql(
            copying("COPY missing FROM STDIN (FORMAT binary)"), (_numbers(1),)
        )
    assert _sum(counting) == 0
