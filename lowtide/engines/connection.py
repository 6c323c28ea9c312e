"""A minimal keep-alive HTTP/1.1 connection to an upstream.

General-purpose clients cost too much: with 128 requests in flight at 50 ms of latency on 2 cores,
httpx saturates a core at 107 requests/s, aiohttp reaches 0.93 of the rate of plain sockets, and
this connection 0.99. llhttp parses, through httptools.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import httptools

from lowtide.engines.outcomes import NoAnswer
from lowtide.engines.receiving import BrokenReplyError, decoder_of
from lowtide.engines.replies import Reply

if TYPE_CHECKING:
    import ssl

    from lowtide.engines.receiving import Decoder, Intake
    from lowtide.telemetry.tracing import TraceContext


_PIECE: Final = 256 * 1024
"""Bytes sent or received at a time: about what asyncio reads at once."""


_REDIRECTS = frozenset({307, 308})
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """An upstream's address, and the header fields common to all requests."""

    host: str
    port: int
    encrypted: bool
    path: str
    fields: str
    address: str

    @classmethod
    def parse(cls, url: str, api_key: str) -> Origin:
        """Return the origin of a base URL; raises ValueError for another scheme or a bad key."""
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(
                f"The engine's URL {url!r} must start with http:// or https:// and have a host."
            )
        if not api_key.isascii() or not (api_key or "-").isprintable():
            raise ValueError("The engine's API key must be printable ASCII.")
        host = parts.netloc.rpartition("@")[2]
        fields = f"Host: {host}\r\nUser-Agent: lowtide\r\nAccept: application/json\r\n"
        # The network between engine and worker is faster than gzip.
        fields += "Accept-Encoding: identity\r\n"
        if api_key:
            fields += f"Authorization: Bearer {api_key}\r\n"
        encrypted = parts.scheme == "https"
        port = parts.port or _PORTS[parts.scheme]
        return cls(parts.hostname, port, encrypted, parts.path.rstrip("/"), fields, host)

    def get(self, path: str) -> bytes:
        """Return a GET request."""
        return f"GET {self.path}{path} HTTP/1.1\r\n{self.fields}\r\n".encode("ascii")

    def post(self, path: str, size: int, trace: TraceContext | None = None) -> bytes:
        """Return the head of a JSON POST request with a body of `size` bytes, within `trace`."""
        fields = self.fields if trace is None else self.fields + _trace_fields(trace)
        head = (
            f"POST {self.path}{path} HTTP/1.1\r\n{fields}"
            f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
        )
        return head.encode("ascii")

    def other_path(self, path: str, reply: Reply) -> str | None:
        """Return the target of a redirect that only adds or removes a trailing slash, else None.

        Servers that distinguish the two paths send it; any other redirect is an answer.
        """
        if reply.status not in _REDIRECTS or not reply.location:
            return None
        other_path = path.removesuffix("/") if path.endswith("/") else f"{path}/"
        url = f"http{'s' * self.encrypted}://{self.address}{self.path}{path}"
        try:
            target = urlsplit(urljoin(url, reply.location))
            port = target.port or _PORTS.get(target.scheme)
        except ValueError:
            return None
        is_same_origin = (target.scheme == "https", target.hostname, port) == (
            self.encrypted,
            self.host,
            self.port,
        )
        full_path = self.path + other_path
        return (
            other_path
            if is_same_origin and (target.path, target.query) == (full_path, "")
            else None
        )


def _trace_fields(trace: TraceContext) -> str:
    state = f"tracestate: {trace.state}\r\n" if trace.state else ""
    return f"traceparent: {trace.traceparent}\r\n{state}"


class Connection(asyncio.Protocol):
    """Carries one request at a time; any failure closes it for good.

    `max_bytes` bounds a reply, its head included. The intake throttles large replies.
    """

    def __init__(self, max_bytes: int, intake: Intake) -> None:
        self._max_bytes = max_bytes
        self._intake = intake
        self._deadline: asyncio.Timeout | None = None
        self._remaining_seconds: float | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._may_receive = asyncio.Event()
        self._waiter: asyncio.Future[Reply] | None = None
        self._decoder: Decoder | None = None
        self.reusable = True
        self.idle_since = 0.0
        self._reset()

    @classmethod
    async def open(
        cls, origin: Origin, tls: ssl.SSLContext | None, max_bytes: int, intake: Intake
    ) -> Connection:
        """Connect; raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(max_bytes, intake), origin.host, origin.port, ssl=tls
        )
        return connection

    async def exchange(self, head: bytes, body: bytes, deadline: asyncio.Timeout) -> Reply:
        """Send a request and return its reply.

        Time spent waiting for the intake does not count towards the deadline. Raises
        BrokenReplyError, or ConnectionError if nothing came back. Cancelling closes the connection.
        """
        if self._transport is None or not self.reusable:
            raise ConnectionResetError("The connection is closed.")
        self._reset()
        self._may_receive.set()
        self._waiter = asyncio.get_running_loop().create_future()
        self._deadline = deadline
        try:
            await self._send(self._transport, head, body)
            reply = await self._waiter
            return reply if reply.decoder is None else await self._decode(reply, reply.decoder)
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None
            self._deadline = self._remaining_seconds = None
            self._intake.ended(self)

    async def _send(self, transport: asyncio.Transport, head: bytes, body: bytes) -> None:
        """Write a request; a large body in pieces, since the transport copies unsent bytes."""
        if len(body) <= _PIECE:
            transport.write(head + body)
            return
        transport.write(head)
        remaining = memoryview(body)
        while remaining and not self._is_answered:
            transport.write(remaining[:_PIECE])
            remaining = remaining[_PIECE:]
            await self._may_write.wait()
        if remaining:
            # The reply came early: the next request would be read as the rest of this body.
            self.reusable = False

    async def _decode(self, reply: Reply, decoder: Decoder) -> Reply:
        """Return the reply with its body decoded, piece by piece as the intake permits."""
        body = BytesIO()
        for piece in decoder.decode(reply.body):
            body.write(piece)
            size = self._received + body.tell()
            if size > _PIECE:
                self._intake.received(self, size)
                await asyncio.sleep(0)
                await self._may_receive.wait()
        return replace(reply, body=body.getvalue(), decoder=None)

    def pause_writing(self) -> None:
        """Suspend sending a body (asyncio's callback)."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Resume sending a body (asyncio's callback)."""
        self._may_write.set()

    def hold(self) -> None:
        """Pause receiving, and the deadline."""
        self._may_receive.clear()
        if self._transport is not None:
            self._transport.pause_reading()
        when = None if self._deadline is None else self._deadline.when()
        if self._deadline is not None and when is not None:
            self._remaining_seconds = when - asyncio.get_running_loop().time()
            self._deadline.reschedule(None)

    def go_on(self) -> None:
        """Resume receiving, and the deadline."""
        self._may_receive.set()
        if self._transport is not None:
            self._transport.resume_reading()
        if self._deadline is not None and self._remaining_seconds is not None:
            now = asyncio.get_running_loop().time()
            self._deadline.reschedule(now + self._remaining_seconds)
            self._remaining_seconds = None

    def close(self) -> None:
        """Close immediately."""
        self.reusable = False
        # The parser keeps this object, and its body, alive until garbage collection.
        self._body = BytesIO()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio's callback)."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse the data received (asyncio's callback)."""
        self._received += len(data)
        if self._is_answered:
            self.close()
        elif self._received > self._max_bytes:
            self._fail(self._too_large())
        else:
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self._fail(BrokenReplyError(f"not HTTP: {error}"))
            if self._received > _PIECE and not self._is_answered:
                # A decoded body outgrows its Content-Length.
                expected = self._expected if self._decoder is None else 0
                self._intake.received(self, self._received, expected)

    def connection_lost(self, exc: Exception | None) -> None:
        """Finish a reply delimited by end of connection; fail any other (asyncio's callback)."""
        self.reusable = False
        self._may_write.set()
        if self._status and not self._has_length and exc is None:
            self._finish()
        elif self._received:
            text = "connection lost before the end"
            self._fail(BrokenReplyError(text, NoAnswer.LOST))
        else:
            reason = f": {exc}" if exc else "."
            self._fail(ConnectionResetError(f"connection closed without a response{reason}"))

    def on_message_begin(self) -> None:
        """Distrust a server that sends an unrequested reply (the parser's callback)."""
        if self._is_answered:
            self.reusable = False

    def on_status(self, status: bytes) -> None:
        """Keep the reason phrase (the parser's callback)."""
        self._reason += status.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the relevant fields (the parser's callback)."""
        field = name.lower()
        if field == b"x-request-id":
            self._request_id = value.decode("latin-1")
        elif field == b"retry-after":
            self._retry_after = value.decode("latin-1")
        elif field == b"location":
            self._location = value.decode("latin-1")
        elif field == b"content-encoding":
            self._encoding = value.decode("latin-1")
        elif field == b"transfer-encoding":
            self._has_length = True
        elif field == b"content-length":
            self._has_length = True
            self._expected = int(value) if value.isdigit() else 0

    def on_headers_complete(self) -> None:
        """Record the status and choose the decoder (the parser's callback)."""
        self._status = self._parser.get_status_code()
        if self._expected > self._max_bytes:
            self._fail(self._too_large())
        try:
            self._decoder = decoder_of(self._encoding, self._max_bytes)
        except BrokenReplyError as error:
            self._fail(error)

    def on_body(self, body: bytes) -> None:
        """Collect the body (the parser's callback)."""
        if not self._is_answered:
            self._body.write(body)

    def on_message_complete(self) -> None:
        """Finish the reply, unless it is an interim 1xx one (the parser's callback)."""
        if self._status < 200:
            self._reset()
            return
        if not self._parser.should_keep_alive():
            self.reusable = False
        self._finish()

    @property
    def _is_answered(self) -> bool:
        return self._waiter is None or self._waiter.done()

    def _reset(self) -> None:
        self._received = 0
        self._status = 0
        self._reason = ""
        self._request_id = ""
        self._retry_after = ""
        self._location = ""
        self._encoding = ""
        self._decoder = None
        self._has_length = False
        self._expected = 0
        self._body = BytesIO()

    def _finish(self) -> None:
        if self._waiter is None or self._is_answered:
            return
        # `getvalue` does not copy, unlike the conversion of a bytearray.
        body = self._body.getvalue()
        self._body = BytesIO()
        self._may_write.set()
        self._waiter.set_result(
            Reply(
                self._status,
                self._reason,
                body,
                self._request_id,
                self._retry_after,
                self._location,
                self._decoder,
            )
        )

    def _too_large(self) -> BrokenReplyError:
        text = f"larger than {self._max_bytes} bytes (LOWTIDE_MAX_RESPONSE_BYTES)"
        return BrokenReplyError(text, NoAnswer.TOO_LARGE)

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._is_answered:
            self._waiter.set_exception(error)
        self._may_write.set()
        self.close()
