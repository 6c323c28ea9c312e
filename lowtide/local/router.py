"""One port for the whole API, routed by the HTTPRoutes: `python -m lowtide.local.router`.

Bodies stream both ways in constant memory; all but the hop-by-hop headers pass unchanged.
"""

from __future__ import annotations

import asyncio
import signal
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientSession,
    ClientTimeout,
    TCPConnector,
    web,
)
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from lowtide.http.hops import end_to_end
from lowtide.local.files import Endpoints
from lowtide.local.manifests import HttpRoute
from lowtide.local.options import runtime_arguments
from lowtide.local.ports import HOST
from lowtide.local.workloads import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp import ClientResponse

    from lowtide.local.manifests import RouteMatch, RouteRule


PATIENCE = 3.0  # seconds that a request waits for a restarting backend
_RETRY_INTERVAL = 0.05
_BUFFER = 1 << 20
# aiohttp adds these to a request that the caller sent without them.
_SKIPPED_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


class Routes:
    """Backends by path and method, with the Gateway API's precedence."""

    def __init__(self, rules: list[RouteRule]) -> None:
        self._matches = sorted(
            (
                (match, service)
                for rule in rules
                for match in rule.matches
                if (service := rule.service) is not None
            ),
            key=lambda entry: _precedence(entry[0]),
        )

    def find(self, method: str, path: str) -> str | None:
        """Return the backend's name; None if no rule matches."""
        for match, backend in self._matches:
            if match.method in (None, method) and _path_matches(match, path):
                return backend
        return None


def _precedence(match: RouteMatch) -> tuple[bool, int, bool]:
    return (match.path.type != "Exact", -len(match.path.value), match.method is None)


def _path_matches(match: RouteMatch, path: str) -> bool:
    value = match.path.value
    if match.path.type == "Exact":
        return path == value
    prefix = value.rstrip("/")
    return path == prefix or path.startswith(prefix + "/")


class Router:
    """The proxy's request handler."""

    def __init__(self, routes: Routes, endpoints: Endpoints, patience: float = PATIENCE) -> None:
        self._routes = routes
        self._endpoints = endpoints
        self._patience = patience
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Router:
        self._session = ClientSession(
            # A backend may close a kept-alive connection just as a request is sent on it.
            connector=TCPConnector(limit=0, force_close=True),
            timeout=ClientTimeout(total=None, sock_connect=5),
            auto_decompress=False,
            skip_auto_headers=_SKIPPED_AUTO_HEADERS,
            read_bufsize=_BUFFER,
            max_line_size=65_536,
            max_field_size=65_536,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer with the backend's response: 404 without a route, 503 without a backend."""
        path = request.raw_path.partition("?")[0]
        backend = self._routes.find(request.method, path)
        if backend is None:
            return _error(404, "invalid_request_error", "unknown_url", f"No route for {path}.")
        try:
            upstream = await self._send(request, backend)
        except (ClientConnectionError, TimeoutError):
            upstream = None
        if upstream is None:
            message = f"The service {backend} is not responding; try again."
            response = _error(503, "server_error", "unavailable", message)
            response.headers["Retry-After"] = "1"
            return response
        async with upstream:
            return await _relay(request, upstream)

    async def _send(self, request: web.BaseRequest, backend: str) -> ClientResponse | None:
        """Send to a replica; retries until one accepts the connection, None after `patience`."""
        deadline = asyncio.get_running_loop().time() + self._patience
        headers = _end_to_end(request.headers)
        headers["X-Forwarded-For"] = request.remote or ""
        if self._session is None:
            raise RuntimeError("The router is not open.")
        while True:
            address = self._endpoints.pick(backend)
            if address is not None:
                with suppress(ClientConnectorError):
                    return await self._session.request(
                        request.method,
                        URL(address + request.raw_path, encoded=True),
                        headers=headers,
                        data=_body(request) if request.body_exists else None,
                        allow_redirects=False,
                    )
            if asyncio.get_running_loop().time() >= deadline:
                return None
            await asyncio.sleep(_RETRY_INTERVAL)


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    if request.headers.get("Expect", "").lower() == "100-continue":
        # The backend is connected, so the caller may now send the body.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    else:
        # The empty chunk sends the head at once: a backend may refuse before any body arrives.
        yield b""
    while chunk := await request.content.readany():
        yield chunk


async def _relay(request: web.BaseRequest, upstream: ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(
        status=upstream.status, reason=upstream.reason, headers=_end_to_end(upstream.headers)
    )
    await response.prepare(request)
    try:
        while chunk := await upstream.content.readany():
            await response.write(chunk)
    except ClientConnectionError:
        # The status is already sent: only a broken connection can signal missing bytes.
        if request.transport is not None:
            request.transport.abort()
        raise
    await response.write_eof()
    return response


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict(end_to_end(headers.items(), headers.get("Connection", "")))


def _error(status: int, kind: str, code: str, message: str) -> web.Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers={"x-request-id": f"req_{uuid.uuid4().hex}"},
    )


async def serve(root: Path, data_dir: Path, port: int) -> None:
    """Serve until SIGTERM."""
    routes = Routes([rule for route in load(root).all(HttpRoute) for rule in route.spec.rules])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Router(routes, Endpoints(data_dir)) as router:
        server = web.Server(
            router.handle, read_bufsize=_BUFFER, auto_decompress=False, access_log=None
        )
        runner = web.ServerRunner(server)
        await runner.setup()
        await web.TCPSite(runner, HOST, port, reuse_address=True, shutdown_timeout=5).start()
        await stop.wait()
        await runner.cleanup()


if __name__ == "__main__":
    arguments = runtime_arguments("The path router of the local runtime.")
    asyncio.run(serve(arguments.root, arguments.data_dir, arguments.port))
