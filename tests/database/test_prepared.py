"""Connections with prepared statements: what makes them stale, what closes them, what they keep."""

from __future__ import annotations

import inspect
import socket
from typing import TYPE_CHECKING

import pytest
from pg8000 import core
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import Pool
from lowtide.database.connections import acting_for, begin, connect
from lowtide.database.prepared import hot
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
    """A pool of one connection, so that each transaction is on the same."""
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


def test_a_statement_is_prepared_once_a_connection(one: Engine) -> None:
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
def test_values_arrive_as_they_are(one: Engine, value: str | None) -> None:
    for _ in range(2):
        with begin(one) as connection:
            assert connection.execute(ECHO, {"value": value}).scalar_one() == value


def test_deallocated_behind_its_back(one: Engine) -> None:
    """As a connection pooler between them does: once Unavailable, then prepared anew."""
    _add(one)
    assert _names(one) == ["w"]
    backend = _backend(one)
    with begin(one) as connection:
        connection.execute(text("DEALLOCATE ALL"))
    with pytest.raises(Unavailable):
        _names(one)
    assert _names(one) == ["w"]
    assert _backend(one) == backend


def test_a_migration_changes_what_a_statement_returns(database: Database, one: Engine) -> None:
    _add(one)
    assert _names(one) == ["w"]
    with database.engine("owner").begin() as connection:
        connection.execute(text("ALTER TABLE workers ADD COLUMN colour text DEFAULT 'blue'"))
    with pytest.raises(Unavailable):
        _names(one)
    with begin(one) as connection:
        (row,) = connection.execute(ALL, {"name": "w"})
    assert (row.name, row.colour) == ("w", "blue")


def test_a_migration_while_a_worker_works(world: World, database: Database) -> None:
    """Of the statements of the queue one is refused at most, and nothing is lost."""
    del world
    here = World(database)
    batch = fill(here, 30)
    queue = here.queue_on(here.own_engine("worker"))
    lease = queue.open_lease(Pool.SPOT, "w")
    claims = [*queue.claim(lease, Pool.SPOT, 10)]
    queue.settle(lease, [done(claim) for claim in claims], [])
    with database.engine("owner").begin() as connection:
        for table in ("queue", "claims", "results", "batches"):
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN colour text"))
    refused = 0
    while here.drained(batch) == 0:
        try:
            claims = [*queue.claim(lease, Pool.SPOT, 10)]
            queue.settle(lease, [done(claim) for claim in claims], [])
        except Unavailable:
            refused += 1
            assert refused < 10
    assert here.lines("results", batch) == list(range(1, 31))
    assert here.row(batch).tallied_completed == 30


@pytest.mark.parametrize("prepared", [True, False])
def test_a_connection_that_the_server_closed_is_replaced(
    database: Database, one: Engine, *, prepared: bool
) -> None:
    backend = _backend(one)
    if prepared:
        _names(one)
    server = database.server
    url = server.url(SUPERUSER, server.cluster.password, database.name)
    with admin_engine(url).connect() as admin:
        gone = text("SELECT pg_terminate_backend(:pid, 5000)")
        assert admin.execute(gone, {"pid": backend}).scalar_one()
    _add(one)
    assert _names(one) == ["w"]
    assert _backend(one) != backend


def test_a_connection_closed_in_a_transaction_is_unavailable_once(
    database: Database, one: Engine
) -> None:
    server = database.server
    url = server.url(SUPERUSER, server.cluster.password, database.name)

    def cut() -> None:
        with begin(one) as connection:
            backend = connection.execute(BACKEND).scalar_one()
            with admin_engine(url).connect() as admin:
                gone = text("SELECT pg_terminate_backend(:pid, 5000)")
                assert admin.execute(gone, {"pid": backend}).scalar_one()
            connection.execute(ADD, {"name": "w"})

    with pytest.raises(Unavailable):
        cut()
    assert _names(one) == []


@pytest.mark.parametrize("first", [True, False], ids=["opens the transaction", "in a transaction"])
def test_an_error_undoes_the_transaction_and_the_next_works(one: Engine, *, first: bool) -> None:
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


def test_a_statement_that_cannot_be_prepared_leaves_nothing_behind(one: Engine) -> None:
    wrong = hot("SELECT * FROM nowhere WHERE name = :name")
    for _ in range(2):
        with pytest.raises(DBAPIError, match="42P01"), begin(one) as connection:
            connection.execute(wrong, {"name": "w"})
    _add(one)
    assert _names(one) == ["w"]


def test_an_exception_of_the_caller_undoes_what_was_prepared(one: Engine) -> None:
    def fail() -> None:
        with begin(one) as connection:
            connection.execute(ADD, {"name": "w"})
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert _names(one) == []


def test_a_savepoint_undoes_only_its_part(one: Engine) -> None:
    with begin(one) as connection:
        connection.execute(ADD, {"name": "kept"})
        part = connection.begin_nested()
        connection.execute(ADD, {"name": "undone"})
        part.rollback()
    assert (_names(one, "kept"), _names(one, "undone")) == (["kept"], [])


def test_nothing_is_committed_before_the_end(database: Database, one: Engine) -> None:
    other = database.engine("worker")
    with begin(one) as connection:
        connection.execute(ADD, {"name": "w"})
        assert _names(other) == []
    assert _names(other) == ["w"]


def test_a_commit_that_the_server_turns_into_a_rollback_is_an_error(one: Engine) -> None:
    """A swallowed error leaves a transaction that cannot commit: nobody must take it for done."""

    def swallow() -> None:
        with begin(one) as connection:
            connection.execute(ADD, {"name": "w"})
            with pytest.raises(DBAPIError):
                connection.execute(hot("SELECT 1 / cast(:zero AS integer)"), {"zero": 0})

    with pytest.raises(Unavailable):
        swallow()
    assert _names(one) == []


def test_no_tenant_is_carried_over(world: World) -> None:
    """One connection serves all tenants in turn, prepared statements included."""
    other = world.tenant("other")
    mine, its = world.batch(1), world.batch(1, tenant=other)
    engine = connect(world.database.url("api"), pool_size=1)
    seen = hot("SELECT id FROM batches WHERE total > cast(:lines AS integer)")
    begun: list[str] = []
    event.listen(engine, "checkout", lambda *_: begun.append("checkout"))
    try:
        for tenant, batch in ((DEFAULT_TENANT, mine), (other, its), (DEFAULT_TENANT, mine)):
            with acting_for(engine, tenant) as connection:
                assert connection.execute(seen, {"lines": 0}).scalars().all() == [batch]
            with begin(engine) as connection:
                assert connection.execute(seen, {"lines": 0}).scalars().all() == []

        def fail() -> None:
            with acting_for(engine, other) as connection:
                connection.execute(text("SELECT 1 / 0"))

        with pytest.raises(DBAPIError):
            fail()
        with begin(engine) as connection:
            assert connection.execute(seen, {"lines": 0}).scalars().all() == []
    finally:
        engine.dispose()
    assert len(begun) == 8


def test_statements_that_are_not_hot_see_the_same_transaction(one: Engine) -> None:
    with begin(one) as connection:
        connection.execute(ADD, {"name": "w"})
        assert connection.execute(text("SELECT name FROM workers")).scalars().all() == ["w"]
        connection.execute(text("DELETE FROM workers"))
        assert connection.execute(ALL, {"name": "w"}).all() == []


def test_claims_do_not_prepare_anew(world: World) -> None:
    fill(world, 20)
    engine = world.own_engine("worker")
    queue = world.queue_on(engine)
    lease = queue.open_lease(Pool.SPOT, "w")
    taken = [line for _ in range(4) for line in numbers(queue.claim(lease, Pool.SPOT, 5))]
    assert taken == list(range(1, 21))
    with begin(engine) as connection:
        prepared = text("SELECT count(*), count(DISTINCT statement) FROM pg_prepared_statements")
        assert len(set(connection.execute(prepared).one())) == 1


def test_packets_wait_for_no_acknowledgement(one: Engine) -> None:
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
def test_the_private_functions_of_the_driver_are_as_expected(
    function: Callable[..., object], parameters: list[str]
) -> None:
    assert list(inspect.signature(function).parameters) == parameters, (
        "pg8000 changed: read lowtide/database/prepared.py against its new source, then widen the pin"
    )


def test_the_driver_keeps_its_state_under_the_expected_names(one: Engine) -> None:
    with one.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert {"_sock", "_usock", "_transaction_status"} <= set(vars(driver))
