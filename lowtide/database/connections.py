"""PostgreSQL connections: TLS, pools, and transactions limited to one tenant."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lowtide.core.errors import Unavailable
from lowtide.database.prepared import PreparingConnection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ssl import SSLContext

    from sqlalchemy import URL, Connection, Engine

    from lowtide.core.ids import TenantId


_PARAMETERS = ("sslmode", "sslrootcert")
# The driver's values: False is plaintext, None encrypts if the server can, True requires TLS.
_UNVERIFIED = {"disable": False, "allow": None, "prefer": None, "require": True}
_VERIFIED = ("verify-ca", "verify-full")
_SYSTEM = "system"


def encryption(url: URL) -> tuple[URL, SSLContext | bool | None]:
    """Return the address without libpq's TLS parameters, and the driver's `ssl_context` for them.

    The default is `prefer`. `require` accepts any certificate, unless `sslrootcert` names trusted
    ones. With `system`, or in a verifying mode without `sslrootcert`, the system's certificates are
    trusted; they sign for any host, so only `verify-full` is allowed. Raises ValueError.
    """
    unknown = sorted(set(url.query) - set(_PARAMETERS))
    if unknown:
        raise ValueError(f"unknown parameter in the database URL: {', '.join(unknown)}")
    mode, roots = (_parameter(url, name) for name in _PARAMETERS)
    mode = mode or ("verify-full" if roots == _SYSTEM else "prefer")
    if mode not in (*_UNVERIFIED, *_VERIFIED):
        modes = ", ".join([*_UNVERIFIED, *_VERIFIED])
        raise ValueError(f"invalid sslmode={mode} in the database URL: use one of {modes}")
    if mode == "require" and roots:
        mode = "verify-ca"
    if mode == "verify-ca" and roots in {"", _SYSTEM}:
        raise ValueError("system certificates are valid for any host: use sslmode=verify-full")
    if mode in _UNVERIFIED and roots:
        raise ValueError(f"sslmode={mode} ignores sslrootcert: use sslmode=verify-full")
    address = url.difference_update_query(_PARAMETERS)
    if mode in _UNVERIFIED:
        return address, _UNVERIFIED[mode]
    return address, _ssl_context(roots, check_hostname=mode == "verify-full")


def _parameter(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else value[-1]


def _ssl_context(roots: str, *, check_hostname: bool) -> SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=roots if roots not in {"", _SYSTEM} else None)
    except OSError as error:
        raise ValueError(
            f"sslrootcert={roots} in the database URL: {error.strerror or error}"
        ) from error
    context.check_hostname = check_hostname
    return context


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

    `?sslmode=` and `sslrootcert=` are libpq's; raises ValueError for invalid values. `timeout`, in
    seconds, applies to connecting, to waiting for a free connection and to each response of the
    server. The server waits as long for the next statement of a transaction: a frozen process
    would otherwise keep its locks forever, and no other worker could take over its requests.
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
