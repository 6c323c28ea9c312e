"""Gunicorn's threaded worker, with deadlines and minimum rates for clients."""

from __future__ import annotations

import errno
import re
import socket
from collections import deque
from functools import partial
from io import SEEK_END
from selectors import EVENT_READ
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from gunicorn.http.body import Body, LengthReader
from gunicorn.workers.gthread import ThreadWorker
from werkzeug.exceptions import ClientDisconnected, RequestTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


CROWDED_SECONDS: Final = 3.0
CROWDED_RATE: Final = float(1 << 18)
"""Min rate of a client, in bytes per second, while all threads are taken."""
PATIENCE = "lowtide.patience"
"""Key of a request's Patience in its WSGI environment."""


class Patience:
    """The seconds that a thread may wait for the client of one request.

    Waiting consumes them. Once `earn` is called, each transferred byte adds some: a client that
    keeps the minimum rate on average may take as long as it needs. While `crowded`, when all
    threads are taken, clients must be faster, or are dropped within seconds.
    """

    def __init__(
        self,
        seconds: float,
        *,
        timeout: float,
        rate: float,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self.left = seconds
        self._timeout = timeout
        self._rate = rate
        self._crowded = crowded
        self._earns = False

    def earn(self) -> None:
        """Let transferred bytes add time from now on, as the caller is authenticated."""
        self._earns = True
        self.left = self._timeout

    def waited(self, seconds: float, transferred: int) -> None:
        """Subtract a wait, and add the time that its transferred bytes earn."""
        rate, maximum = self._rate, self._timeout
        if self._crowded():
            rate, maximum = max(rate, CROWDED_RATE), min(maximum, CROWDED_SECONDS)
        credit = transferred / rate if self._earns else 0.0
        self.left = min(self.left - seconds + credit, maximum)


MAX_HEAD_BYTES = 1 << 16
# For a request without a key: its body is never read, so this is for sending the response.
_ANONYMOUS_SECONDS = 5.0
# A client that is still sending would miss the error response if its connection were reset.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 4 << 20
_RECEIVE_BYTES = 1 << 16
# The interval at which a thread that waits for its client checks if all threads are taken.
_POLL_SECONDS = 0.5
_Result = TypeVar("_Result")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class ClientTooSlow(ConnectionResetError):
    """A client used up its patience; the server treats it as disconnected."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "The client was too slow.")


class ClientSocket(socket.socket):
    """A connection on which a thread waits no longer than the request's patience."""

    patience = Patience(_ANONYMOUS_SECONDS, timeout=_ANONYMOUS_SECONDS, rate=1.0)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive; raises ClientTooSlow."""
        return self._patiently(partial(super().recv, bufsize, flags), len)

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send everything; raises ClientTooSlow."""
        remaining = memoryview(data)
        while remaining:
            sent = self._patiently(partial(super().send, remaining, flags), int)
            remaining = remaining[sent:]

    def _patiently(
        self, call: Callable[[], _Result], transferred: Callable[[_Result], int]
    ) -> _Result:
        # What is there at once was not waited for: the time this thread then spends in line for
        # the interpreter is not the client's. Without patience left, only that succeeds, which
        # still sends the error response.
        timeout = 0.0
        while True:
            self.settimeout(timeout)
            start = monotonic()
            try:
                result = call()
            except (TimeoutError, BlockingIOError) as error:
                self.patience.waited(monotonic() - start if timeout else 0.0, 0)
                if self.patience.left <= 0:
                    raise ClientTooSlow from error
                timeout = min(self.patience.left, _POLL_SECONDS)
            else:
                waited = monotonic() - start if timeout else 0.0
                self.patience.waited(waited, transferred(result))
                return result


class RequestBody(Body):
    """A request's body; `100 Continue` is sent on the first read, not before."""

    def __init__(self, request: Any, connection: ClientSocket) -> None:
        super().__init__(request.body.reader)
        self._request = request
        self._connection = connection
        # gunicorn would send it before the application has seen the request.
        self._continue_pending = request._expected_100_continue  # noqa: SLF001
        request._expected_100_continue = False  # noqa: SLF001

    @property
    def is_read(self) -> bool:
        """True if the next byte of the connection belongs to another request."""
        if hasattr(self.reader, "length"):
            return bool(self.reader.length == 0)
        return self.reader.parser is None

    def pieces(self) -> Iterator[bytes]:
        """Yield the rest of the body as it arrives, up to 1 MiB at a time; raises ClientDisconnected.

        One of known length without the copies that `read` makes.
        """
        if not isinstance(self.reader, LengthReader):
            while data := self.read(_RECEIVE_BYTES):
                yield data
            return
        if head := self.buf.getvalue():
            self.buf.seek(0)
            self.buf.truncate()
            yield head
        source = self.reader.unreader
        while left := self.reader.length:
            self._continue()
            piece = self._receive(partial(source.read, None, read_ahead=left))
            if not piece:
                raise ClientDisconnected
            if len(piece) > left:
                source.unread(piece[left:])
                piece = piece[:left]
            self.reader.length -= len(piece)
            yield piece

    def close_unless_read(self) -> None:
        """Close the connection after this response if more of the body may arrive."""
        if not self.is_read:
            self._request.force_close()

    def _read_reader(self, size: int) -> bytes:
        self._continue()
        data: bytes = self._receive(partial(super()._read_reader, size))
        return data

    def _continue(self) -> None:
        if self._continue_pending and not self.is_read:
            self._continue_pending = False
            self._connection.sendall(_CONTINUE)

    @staticmethod
    def _receive(read: Callable[[], _Result]) -> _Result:
        try:
            return read()
        except ClientTooSlow as error:
            raise RequestTimeout(
                "The body arrived too slowly: send it again at a steady rate."
            ) from error


def closing(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Wrap an application: a response before the body's end closes the connection."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body: RequestBody = environ["wsgi.input"]
        environ[PATIENCE] = environ["gunicorn.socket"].patience

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            body.close_unless_read()
            return start_response(status, headers, *exc_info)

        return application(environ, start)

    return answer


class Worker(ThreadWorker):
    """Serve requests in threads; the event loop waits for their heads and closes connections."""

    client_timeout: ClassVar[float]
    client_rate: ClassVar[float]
    """The settings of these names, to be set before a worker is forked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lingering: deque[Any] = deque()

    def accept(self, listener: Any) -> None:
        """Accept a connection; if there are too many, drop one that waits for its client."""
        super().accept(listener)
        if self.nr_conns >= self.worker_connections:
            waiting = max(self.pending_conns, self.keepalived_conns, self._lingering, key=len)
            if waiting:
                self._drop(waiting.popleft())

    def enqueue_req(self, conn: Any) -> None:
        """Pass a connection to a thread once the head of its request is complete."""
        if not isinstance(conn.sock, ClientSocket):
            conn.sock = ClientSocket(fileno=conn.sock.detach())
        conn.sock.patience = self._patience()
        conn.init()
        conn.sock.setblocking(False)
        if self._has_head(conn, searched=0):
            super().enqueue_req(conn)
            return
        conn.timeout = monotonic() + self.client_timeout
        self._watch(conn, self.pending_conns, self.on_pending_socket_readable)

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        """Read more of a request's head."""
        buffer = conn.parser.unreader.buf
        searched = max(0, buffer.seek(0, SEEK_END) - 3)
        try:
            data = socket.socket.recv(client, _RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        buffer.write(data)
        if self._has_head(conn, searched):
            self.poller.unregister(client)
            self.pending_conns.remove(conn)
            super().enqueue_req(conn)
        elif not data or buffer.tell() > MAX_HEAD_BYTES:
            self.pending_conns.remove(conn)
            self._drop(conn, _HEAD_TOO_LARGE if data else b"")

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Serve a request in a thread."""
        req.body = RequestBody(req, conn.sock)
        return super().handle_request(req, conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep a connection for its next request, or close it without blocking on its client."""
        if not fs.cancelled() and fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
            return
        conn.timeout = monotonic() + _LINGER_SECONDS
        conn.discarded = 0
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self._watch(conn, self._lingering, self._discard)
        except OSError:
            self.nr_conns -= 1
            conn.close()

    def murder_pending(self) -> None:
        """Close connections whose head or end did not arrive in time."""
        now = monotonic()
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            conn = self.pending_conns.popleft()
            self._drop(conn, _HEAD_TIMEOUT if conn.parser.unreader.buf.getvalue() else b"")
        while self._lingering and self._lingering[0].timeout <= now:
            self._drop(self._lingering.popleft())

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _patience(self) -> Patience:
        seconds = min(_ANONYMOUS_SECONDS, self.client_timeout)
        return Patience(
            seconds, timeout=self.client_timeout, rate=self.client_rate, crowded=self._is_crowded
        )

    def _is_crowded(self) -> bool:
        """Return True if all threads are taken.

        Requests that wait for a thread need no check: Knative admits no more requests than threads.
        """
        watched = len(self.pending_conns) + len(self.keepalived_conns) + len(self._lingering)
        return bool(self.nr_conns - watched >= self.cfg.threads)

    def _watch(self, conn: Any, waiting: deque[Any], on_readable: Callable[..., None]) -> None:
        waiting.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(on_readable, conn))

    def _discard(self, conn: Any, client: Any) -> None:
        """Discard bytes that a client sends after its response."""
        try:
            data = socket.socket.recv(client, _RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.discarded += len(data)
        if not data or conn.discarded > _LINGER_BYTES:
            self._lingering.remove(conn)
            self._drop(conn)

    def _drop(self, conn: Any, response: bytes = b"") -> None:
        """Close a connection that the loop watches."""
        self.poller.unregister(conn.sock)
        try:
            if response:
                socket.socket.send(conn.sock, response)
        except OSError:
            pass
        self.nr_conns -= 1
        conn.close()

    @staticmethod
    def _has_head(conn: Any, searched: int) -> bool:
        return _HEAD_END.search(conn.parser.unreader.buf.getvalue(), searched) is not None
