"""PostgreSQL connections: pools, and transactions limited to one tenant."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lowtide.core.errors import Unavailable
from lowtide.database.encryption import advised, encryption
from lowtide.database.prepared import PreparingConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine

    from lowtide.core.ids import TenantId


_PING = text("SELECT 1")
_SET_TENANT = text("SELECT set_config('lowtide.tenant', :tenant, true)")

# SQLSTATE prefixes after which the same transaction may succeed: lost connections, serialization
# failures and deadlocks, idle-in-transaction timeouts, exhausted resources, a server that starts or
# stops, prepared statements that a migration invalidated.
_TRANSIENT_CLASSES = ("08", "0A000", "25P03", "26000", "40", "53", "55", "57", "58")

# Tables can grow from empty to a million rows between two runs of autovacuum. With statistics of a
# small table, every claim and every page of a list would sort what it could read in index order.
_PLANNER = {"enable_sort": "off"}


def connect(
    url: str, *, pool_size: int = 8, timeout: float = 30.0, application: str = "lowtide"
) -> Engine:
    """Return an engine for `postgresql://…`; it connects on first use.

    `?sslmode=` and `sslrootcert=` are libpq's; raises ValueError for invalid values. Without them, a
    server on another machine must prove its host name by a certificate.

    `timeout`, in seconds, applies to connecting, to waiting for a free connection and to each
    response of the server. The server waits as long for the next statement of a transaction: a
    frozen process would otherwise keep its locks forever, and no other worker could take over its
    requests.
    """
    address, tls = encryption(make_url(url))
    timeouts = {"idle_in_transaction_session_timeout": str(int(timeout * 1000))}
    engine = engine_of(
        address,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout,
        connect_args={
            "timeout": timeout,
            "ssl_context": tls,
            "application_name": application,
            "startup_params": _PLANNER | timeouts,
        },
    )
    event.listen(engine, "checkout", _reject_closed)
    return engine


def engine_of(url: URL, **options: Any) -> Engine:
    """Return a SQLAlchemy engine for `postgresql://…` with preparing connections and `options`."""
    engine = create_engine(url.set(drivername="postgresql+pg8000"), **options)
    event.listen(engine, "do_connect", _open)
    return engine


def _open(_dialect: Any, _record: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    with advised():
        return PreparingConnection(*args, **options)


def _reject_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """Make the pool open another connection if the server closed this one.

    An idle connection is readable only if it was closed. Asking the kernel saves the round trip of
    a ping.
    """
    if connection.is_closed():
        raise DisconnectionError


@contextmanager
def begin(engine: Engine) -> Iterator[Connection]:
    """Open a transaction; raises Unavailable for transient failures."""
    try:
        with engine.begin() as connection:
            yield connection
    except (DBAPIError, PoolTimeout, OSError) as error:
        if not _is_transient(error):
            raise
        raise Unavailable("The database is not responding: try again.") from error


def answers(engine: Engine) -> bool:
    """Return whether the server answers a statement; a refusal is an answer, too."""
    try:
        with begin(engine) as connection:
            connection.execute(_PING)
    except Unavailable:
        return False
    except DBAPIError:
        return True
    return True


@contextmanager
def acting_for(engine: Engine, tenant: TenantId) -> Iterator[Connection]:
    """Open a transaction in which row-level security shows only this tenant's rows.

    The setting is local to the transaction, so that a pooled connection does not keep it.
    """
    with begin(engine) as connection:
        connection.execute(_SET_TENANT, {"tenant": str(tenant)})
        yield connection


def sqlstate(error: DBAPIError) -> str:
    """Return the SQLSTATE of an error; "" for the driver's own errors."""
    details = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return str(details.get("C", "")) if isinstance(details, dict) else ""


def _is_transient(error: Exception) -> bool:
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return True
    if state := sqlstate(error):
        return state.startswith(_TRANSIENT_CLASSES)
    # The driver's own errors carry no SQLSTATE; those about the connection are InterfaceErrors.
    return type(error).__name__ == "InterfaceError"
