"""An OpenAI-compatible server of one model that misbehaves on command.

    python -m tests.chaos.engine DATA_DIR LOG PORT MODEL

It prints its control port, where `POST /faults` takes `{mode, target, seconds}`; `target` is a worker's
name or `*`. Each execution of a request becomes a line of the log.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.chaos.control import HOST, serve_control
from tests.chaos.exchange import POISON, answer, latency, marker_of
from tests.chaos.peers import Peers

if TYPE_CHECKING:
    from typing import TextIO

RETRY_AFTER = "2"
ABSURD = ("1000000000000", "Fri, 31 Dec 9999 23:59:59 GMT", "-5", "soon")
FOREIGN = "foreign"
"""The outcome of a request for another model."""
_HUGE = 1_000_000
_SHARE_OF_HUGE = 10  # one answer in this many is huge
_PROBES = {"liar", "huge", "garbage", "error_in_200", "null_in_200", "reset_mid", "not_http"}
"""Modes in which `/health` and `/v1/models` still report a healthy engine."""


@dataclass
class Engine:
    """The server's state: active faults and connected workers."""

    peers: Peers
    log: TextIO
    model: str
    faults: dict[str, tuple[str, float]] = field(default_factory=dict)
    open: set[asyncio.Transport] = field(default_factory=set)
    owners: dict[asyncio.Transport, tuple[str, int]] = field(default_factory=dict)
    site: web.TCPSite | None = None
    runner: web.AppRunner | None = None
    port: int = 0
    answered: int = 0

    def mode(self, worker: str) -> str:
        """Return the current fault mode for a worker; empty if there is none."""
        now = time.monotonic()
        for target in (worker, "*"):
            mode, until = self.faults.get(target, ("", 0.0))
            if now < until:
                return mode
        return ""

    async def break_down(self, order: dict[str, Any]) -> None:
        """Start a fault that ends after its seconds."""
        mode, target, seconds = order["mode"], order["target"], float(order["seconds"])
        if mode == "heal":
            self.faults.clear()
            await self._listen()
            return
        self.faults[target] = (mode, time.monotonic() + seconds)
        if mode == "down" and target == "*":
            await self._close_port()
            asyncio.get_running_loop().call_later(
                seconds, lambda: asyncio.ensure_future(self._listen())
            )
        if mode in {"down", "reset"}:
            for transport, (worker, _) in list(self.owners.items()):
                if target in {"*", worker}:
                    transport.abort()

    async def _close_port(self) -> None:
        if self.site is not None:
            site, self.site = self.site, None
            await site.stop()

    async def _listen(self) -> None:
        if self.site is None and self.mode("*") != "down" and self.runner is not None:
            self.site = web.TCPSite(self.runner, HOST, self.port, reuse_address=True, backlog=1024)
            await self.site.start()

    def owner(self, request: web.Request) -> tuple[str, int]:
        """Return the name and pid of the calling worker."""
        transport = request.transport
        assert transport is not None
        owner = self.owners.get(transport)
        if owner is None:
            ends = (transport.get_extra_info(end)[1] for end in ("peername", "sockname"))
            owner = self.peers.worker_at(*ends)
            for closing in [one for one in self.owners if one.is_closing()]:
                del self.owners[closing]
            if owner[1]:
                self.owners[transport] = owner
        return owner

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a request according to the current mode and record the execution."""
        began = time.time()
        worker, pid = "", 0
        marker, outcome = "", "cancelled"
        try:
            worker, pid = self.owner(request)
            body = json.loads(await request.read())
            marker = marker_of(body)
            if body["model"] != self.model:
                outcome = FOREIGN
                return self._unknown(body["model"])
            mode = self.mode(worker)
            outcome = mode or str(body.get(POISON, 200))
            await asyncio.sleep(latency(marker))
            return await self._answer(request, body, mode, worker)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            record = [marker, worker, pid, round(began, 4), round(time.time(), 4), outcome]
            self.log.write(json.dumps(record) + "\n")
            self.log.flush()

    async def probe(self, request: web.Request) -> web.StreamResponse:
        """Answer `/health` and `/v1/models`."""
        mode = self.mode(self.owner(request)[0])
        if mode and mode not in _PROBES and mode != "wrong_model":
            return await self._misbehave(request, mode, {})
        model = "another-model" if mode == "wrong_model" else self.model
        return web.json_response({"object": "list", "data": [{"id": model, "object": "model"}]})

    async def _answer(
        self, request: web.Request, body: dict[str, Any], mode: str, worker: str
    ) -> web.StreamResponse:
        padding = 0
        if mode == "slow":
            await asyncio.sleep(1.5)
        elif mode == "huge":
            self.answered += 1
            padding = 0 if self.answered % _SHARE_OF_HUGE else _HUGE
        elif mode == "hang":
            while self.mode(worker) == "hang":  # noqa: ASYNC110 - a fault ends by the clock
                await asyncio.sleep(0.1)
            return _abort(request)
        elif mode:
            return await self._misbehave(request, mode, body)
        status = int(body.get(POISON, 200))
        if status != 200:
            return _error(status, "This request fails on every engine.")
        return web.json_response(answer(body, padding))

    async def _misbehave(
        self, request: web.Request, mode: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        if mode in {"down", "reset"}:
            return _abort(request)
        if mode in {"slow", "hang"}:
            await asyncio.sleep(1.5)
            return web.json_response({"object": "list", "data": []})
        if mode == "reset_mid":
            return await _half(request, body)
        if mode == "not_http":
            assert request.transport is not None
            request.transport.write(b"\x00\x01 no HTTP at all\r\n\r\n")
            return _abort(request, at_once=False)
        if mode in _INVALID_ANSWERS:
            return web.Response(body=_INVALID_ANSWERS[mode], content_type="application/json")
        return self._refuse(mode)

    def _unknown(self, model: str) -> web.Response:
        return _error(404, f"The model `{model}` does not exist.", code="model_not_found")

    def _refuse(self, mode: str) -> web.Response:
        if mode == "wrong_model":
            return self._unknown(self.model)
        status = int(mode[:3]) if mode[:3].isdecimal() else 500
        response = _error(status, "The engine is unwell.")
        if mode.endswith("_retry_after"):
            response.headers["Retry-After"] = RETRY_AFTER
        elif mode.endswith("_absurd"):
            self.answered += 1
            response.headers["Retry-After"] = ABSURD[self.answered % len(ABSURD)]
        return response


_INVALID_ANSWERS = {
    "garbage": b'{"id": "chatcmpl-1", "choices": [{"mess\xff\xfe',
    "error_in_200": b'{"error": {"message": "CUDA error", "type": "server_error", "code": 500}}',
    "null_in_200": b"null",
}


def _error(status: int, message: str, code: str | None = None) -> web.Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    detail = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": detail}, status=status)


def _abort(request: web.Request, *, at_once: bool = True) -> web.Response:
    if request.transport is not None:
        if at_once:
            request.transport.abort()
        else:
            request.transport.close()
    return web.Response(status=500)


async def _half(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    content = json.dumps(answer(body)).encode()
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(content)
    await response.prepare(request)
    await response.write(content[: len(content) // 2])
    _abort(request)
    return response


async def main(data_dir: Path, log: Path, port: int, model: str) -> None:
    """Serve until killed."""
    with log.open("a") as file:
        engine = Engine(Peers(data_dir), file, model, port=port)
        application = web.Application(client_max_size=1 << 26)
        application.router.add_post("/v1/chat/completions", engine.complete)
        for path in ("/health", "/v1/models"):
            application.router.add_get(path, engine.probe)
        # A disconnect cancels the request's handler, so that the log has its time.
        engine.runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await engine.runner.setup()
        await engine.break_down({"mode": "heal", "target": "*", "seconds": 0})
        control = await serve_control(engine.break_down)
        print(json.dumps({"control": control}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
