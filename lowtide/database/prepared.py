"""Connections that prepare hot statements once, and save round trips.

For every execution pg8000 translates the placeholders character by character, has the statement
parsed and planned, and takes three round trips, plus three for a commit. For sets of requests that
costs more than the work itself. Statements marked by `hot` are translated once, prepared once per
connection, and sent together with the preceding BEGIN: an execution is one round trip.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pg8000 import core, dbapi
from pg8000.converters import make_params
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import TextClause


_MARK = "/* prepared */"
_COPY_MARK = "/* prepared copy */"
_STALE = frozenset({"0A000", "26000"})
"""SQLSTATEs of a plan whose result type changed, and of a statement that no longer exists."""
_BEGIN = "begin transaction"
_LARGE = 65536
_SENT: tuple[bytes, ...] = ()
"""In place of a stream: its data was sent with the statement."""
_NO_MESSAGE = (KeyError, struct.error)
"""Errors of pg8000 for bytes that are no message, from looking up the type and unpacking them."""


def hot(sql: str) -> TextClause:
    """Mark a statement to be prepared; its plan must not depend on parameter values."""
    return text(_MARK + sql)


def copying(sql: str) -> str:
    """Mark `COPY … FROM STDIN`, for `exec_driver_sql` with one Copied as its parameter."""
    return _COPY_MARK + sql


@dataclass(frozen=True, slots=True)
class Copied:
    """The data that a statement copies, in pieces of any size."""

    pieces: Sequence[bytes] = field(repr=False)


class PreparingConnection(dbapi.Connection):
    """A DB-API connection of pg8000 that prepares hot statements."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except BaseException as error:
            # pg8000 leaves the socket open if its first message cannot be sent.
            self._close_socket(*map(vars(self).get, ("_sock", "_usock")))
            if isinstance(error, _NO_MESSAGE):
                raise _connection_lost(error) from error
            raise
        self._prepared: dict[str, tuple[Any, ...]] = {}
        if self._usock.family != socket.AF_UNIX:
            # Otherwise the second packet of a statement waits for the acknowledgement of the first,
            # which the server delays by 40 ms.
            self._usock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close the connection, and its socket immediately.

        pg8000 leaves the socket to the garbage collector: a stored traceback of a lost connection
        would keep the file descriptor open.
        """
        file, usock = self._sock, self._usock
        try:
            super().close()
        finally:
            self._close_socket(file, usock)

    @staticmethod
    def _close_socket(*files: Any) -> None:
        for file in files:
            with contextlib.suppress(OSError, ValueError):
                if file is not None:
                    file.close()

    def is_closed(self) -> bool:
        """Return True if the server has closed this idle connection."""
        poller = select.poll()
        poller.register(self._usock, select.POLLIN)
        return bool(poller.poll(0))

    def fileno(self) -> int:
        """Return the descriptor of the socket; idle, it is readable once the server has sent a
        notification or closed the connection.
        """
        descriptor: int = self._usock.fileno()
        return descriptor

    def handle_messages(self, context: core.Context) -> None:
        """Read the server's messages; raises InterfaceError if it sends anything else."""
        try:
            super().handle_messages(context)
        except _NO_MESSAGE as error:
            raise _connection_lost(error) from error

    def cursor(self) -> PreparingCursor:
        return PreparingCursor(self)

    def commit(self) -> None:
        self.execute_simple("commit")

    def rollback(self) -> None:
        """Roll back the open transaction, if there is one."""
        if self._in_transaction:
            self.execute_simple("rollback")

    def execute_prepared(self, operation: str, values: Sequence[Any]) -> core.Context:
        """Execute a statement; the first execution prepares it."""
        return self._run(operation, _native(operation), make_params(self.py_types, values), [])

    def execute_copy(self, operation: str, data: Copied) -> core.Context:
        """Execute a COPY of these pieces; the first execution prepares it."""
        return self._run(operation, operation, (), data.pieces)

    def handle_COPY_IN_RESPONSE(  # noqa: N802
        self, data: bytes, context: core.Context
    ) -> None:
        """Send the data, unless that was done without waiting for this answer."""
        if context.stream is not _SENT:
            super().handle_COPY_IN_RESPONSE(data, context)

    def _run(
        self,
        operation: str,
        statement: str,
        values: Sequence[str | None],
        pieces: Sequence[bytes],
    ) -> core.Context:
        if operation not in self._prepared:
            self._prepared[operation] = self.prepare_statement(statement, ())
        name, columns, input_funcs = self._prepared[operation]
        context = core.Context(statement, _SENT if pieces else None, columns, input_funcs)
        begins = not self._in_transaction
        if begins:
            self.send_QUERY(_BEGIN)
        for part in _binding(name, values):
            core._write(self._sock, part)  # noqa: SLF001
        core._write(self._sock, core.EXECUTE_MSG)  # noqa: SLF001
        for piece in pieces:
            # The driver's own function would copy a piece, such as a long answer, twice.
            core._write(self._sock, core.COPY_DATA + core.i_pack(len(piece) + 4))  # noqa: SLF001
            core._write(self._sock, piece)  # noqa: SLF001
        # After an error, the server skips the rest up to the Sync.
        end = core.COPY_DONE_MSG if pieces else b""
        core._write(self._sock, end + core.SYNC_MSG)  # noqa: SLF001
        core._flush(self._sock)  # noqa: SLF001
        if begins:
            self.handle_messages(core.Context(_BEGIN))
        try:
            self.handle_messages(context)
        except dbapi.DatabaseError as error:
            if error.args and isinstance(error.args[0], dict) and error.args[0].get("C") in _STALE:
                self._prepared.clear()
            raise
        return context


class PreparingCursor(dbapi.Cursor):
    """A cursor that prepares hot statements."""

    def execute(self, operation: str, args: Sequence[Any] = (), stream: Any = None) -> Any:
        if operation.startswith(_MARK):
            self._context = self._c.execute_prepared(operation, args)
        elif operation.startswith(_COPY_MARK):
            self._context = self._c.execute_copy(operation, args[0])
        else:
            return super().execute(operation, args, stream)
        rows = self._context.rows
        self._row_iter = None if rows is None else iter(rows)
        return self


def _connection_lost(error: Exception) -> dbapi.InterfaceError:
    """Return a connection error; SQLAlchemy drops the connection for the text "network error"."""
    return dbapi.InterfaceError(f"network error: no PostgreSQL message: {error!r}")


@lru_cache(maxsize=128)
def _native(operation: str) -> str:
    statement: str = dbapi.convert_paramstyle("format", operation, ())[0]
    return statement


def _binding(name: bytes, values: Sequence[str | None]) -> Sequence[bytes]:
    """Return a Bind message in parts: unnamed portal, all values and results as text.

    A large value is a part of its own, written without a copy.
    """
    parts: list[bytes] = []
    head = [b"\0", name, core.H_pack(0), core.H_pack(len(values))]
    size = 4
    for value in values:
        if value is None:
            head.append(core.i_pack(-1))
            continue
        encoded = value.encode()
        head.append(core.i_pack(len(encoded)))
        if len(encoded) < _LARGE:
            head.append(encoded)
        else:
            parts += [b"".join(head), encoded]
            head = []
    parts.append(b"".join([*head, core.H_pack(0)]))
    size += sum(map(len, parts))
    return [core.BIND + core.i_pack(size), *parts]
