"""HTTP calls to cells: small questions, and requests whose bodies stream both ways."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from flask import Response
from urllib3 import (
    HTTPConnectionPool,
    HTTPHeaderDict,
    HTTPSConnectionPool,
    PoolManager,
    Retry,
    Timeout,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError

from lowtide.core.errors import Unavailable
from lowtide.core.ids import LAST_CELL
from lowtide.http.connections import RequestBody
from lowtide.http.hops import end_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from flask import Request
    from urllib3 import BaseHTTPResponse

    from lowtide.cells.model import Cell

    Content = bytes | Iterator[bytes]


_PIECE: Final = 256 * 1024
_ASK_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 2.0
_STALLED_SECONDS: Final = 600.0
"""The time limit of a request at the gateway: nobody waits longer for a cell that hangs."""
_ASKED_AT_ONCE: Final = 128
_KEPT_ALIVE: Final = 64
_OF_CALLER: Final = ("Authorization", "OpenAI-Organization", "traceparent", "tracestate")
# Bytes of a query that stay as they are; others are those of a client that did not encode them.
_OF_QUERY: Final = "".join(map(chr, range(0x21, 0x7F)))


class _Connection(HTTPConnection):
    """A connection whose peer may pause while it reads: the connect timeout would hold for that, too."""

    stalled_seconds = _STALLED_SECONDS

    def send(self, data: Any) -> None:
        """Send bytes; raises TimeoutError."""
        if self.sock is None:
            self.connect()
        self.sock.settimeout(self.stalled_seconds)
        super().send(data)


class _SecureConnection(HTTPSConnection, _Connection):
    """The same with TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class NotConnected(Unavailable):
    """A cell does not accept a connection: nothing of the request was sent."""


@dataclass(frozen=True, slots=True)
class Question:
    """A small request, for any cell: one that all of them answer alike, or each with its part."""

    method: str
    path: str
    query: bytes
    headers: Mapping[str, str]
    body: bytes | None = None

    @classmethod
    def of(
        cls, request: Request, *, body: bytes | None = None, query: bytes | None = None
    ) -> Question:
        """Return a caller's request as a question, by default with its query."""
        headers = {name: request.headers[name] for name in _OF_CALLER if name in request.headers}
        if body is not None:
            headers |= {
                name: request.headers[name]
                for name in ("Content-Type", "Idempotency-Key")
                if name in request.headers
            }
        query = request.query_string if query is None else query
        # The server sends no body in answer to HEAD.
        method = "GET" if request.method == "HEAD" else request.method
        return cls(method, request.path, query, headers, body)


@dataclass(frozen=True, slots=True)
class Answer:
    """A cell's answer to a question, in full."""

    status: int
    headers: Sequence[tuple[str, str]]
    content: bytes


class Upstream:
    """The connections to all cells; a Response streams, and is the caller's to close.

    A cell must accept a connection within 2 s, and answer a question within 5. It may take as long over
    a body as it likes, but must not be `stalled` for so many seconds: a thread would wait forever for a
    cell that hangs, or that is cut off.
    """

    def __init__(self, stalled: float = _STALLED_SECONDS) -> None:
        self._manager = PoolManager(
            num_pools=LAST_CELL,
            maxsize=_KEPT_ALIVE,
            retries=Retry(0, redirect=False),
            timeout=Timeout(connect=_CONNECT_SECONDS, read=stalled),
        )
        self._manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        self._pool = ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="cells")

    def close(self) -> None:
        """Close all connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._manager.clear()

    def ask(self, cell: Cell, question: Question, seconds: float = _ASK_SECONDS) -> Answer | None:
        """Return a cell's answer; None if it does not answer, or with a server error."""
        try:
            answer = self._manager.request(
                question.method,
                _url(cell, question.path, question.query),
                headers=question.headers,
                body=question.body,
                timeout=Timeout(total=seconds),
                decode_content=False,
                redirect=False,
            )
        except HTTPError:
            return None
        return None if answer.status >= 500 else Answer(answer.status, _kept(answer), answer.data)

    def ask_all(
        self, cells: Sequence[Cell], question: Question
    ) -> Sequence[tuple[Cell, Answer | None]]:
        """Ask cells at once; return their answers in their order."""
        answers = self._pool.map(lambda cell: self.ask(cell, question), cells)
        return list(zip(cells, answers, strict=True))

    def send(self, request: Request, cell: Cell, body: Content | None = None) -> Response:
        """Return a cell's response to a request; raises Unavailable if it does not answer.

        NotConnected if it did not get anything of it. Without `body`, that of the request streams: it
        can be sent once.
        """
        headers = HTTPHeaderDict()
        for name, value in end_to_end(request.headers, request.headers.get("Connection", "")):
            if name.lower() != "host":
                headers.add(name, value)
        content = body if body is not None else pieces_of(request) if has_body(request) else None
        try:
            answer = self._manager.request(
                request.method,
                _url(cell, request.path, request.query_string),
                headers=headers,
                body=content,
                preload_content=False,
                decode_content=False,
                redirect=False,
            )
        except HTTPError as error:
            reason = error.reason if isinstance(error, MaxRetryError) else error
            unsent = isinstance(reason, (NewConnectionError, ConnectTimeoutError))
            kind = NotConnected if unsent else Unavailable
            raise kind(
                f"Cell {cell.name} does not answer now; what it holds is not lost."
            ) from error
        response = Response(
            answer.stream(_PIECE, decode_content=False),
            answer.status,
            _kept(answer),
        )
        response.call_on_close(answer.close)
        return response


def has_body(request: Request) -> bool:
    """Return whether a request has a body."""
    return bool(request.content_length) or "Transfer-Encoding" in request.headers


def as_response(answer: Answer) -> Response:
    """Return a cell's answer as the front's."""
    return Response(answer.content, answer.status, list(answer.headers))


def _kept(answer: BaseHTTPResponse) -> list[tuple[str, str]]:
    return end_to_end(answer.headers.items(), answer.headers.get("Connection", ""))


def pieces_of(request: Request) -> Iterator[bytes]:
    """Yield what remains of a request's body, as it arrives."""
    body = request.environ["wsgi.input"]
    if isinstance(body, RequestBody):
        yield from body.pieces()
        return
    while piece := request.stream.read(_PIECE):
        yield piece


def _url(cell: Cell, path: str, query: bytes) -> str:
    text = f"?{quote(query, _OF_QUERY)}" if query else ""
    return cell.url + quote(path) + text
