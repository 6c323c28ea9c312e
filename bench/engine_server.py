"""An OpenAI-compatible server with continuous batching, and a bare asyncio client of it.

    python -m bench.engine_server serve MAX_NUM_SEQS [BLOCKS [PORT [MODEL...]]]    prints its port
    python -m bench.engine_server ask URL FILE SECONDS IN_FLIGHT...    prints when each try began
    python -m bench.engine_server send URL FILE IN_FLIGHT              prints the seconds it took

The server answers like vLLM, `/metrics` included; `bench.batching` decides when. The length of an
answer depends on the request alone. With BLOCKS it has a prefix cache of that many blocks, and reports
its hits as vLLM does. With MODELs it refuses requests for others with 404; `GET /refused` counts those.
Each answer names its model, and its engine in `system_fingerprint`. `GET /timeline` returns a sample
of the engine every 100 ms, `POST /resize/N` changes the size of its batch, and after `POST /status/N`
it answers nothing but that error, until N is 200. The client does the minimum: connections that stay
open, one request at a time on each, and the response read in full. `ask` sends the requests of a
batch file over and over, with each number in flight for so many seconds; `send` sends each once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import count, cycle
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from zlib import crc32

from bench.batching import Batch, Hardware
from bench.prefix_cache import PrefixCache, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HOST = "127.0.0.1"
SAMPLE_SECONDS = 0.1
MEAN_TOKENS, SPREAD, MAX_TOKENS = 40, 0.7, 200
_LAG = 0.1
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="bench"} %.1f
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="bench"} %.1f
# HELP vllm:generation_tokens Number of generation tokens processed.
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="bench"} %.1f
# HELP vllm:request_success Count of successfully processed requests.
# TYPE vllm:request_success counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="bench"} %.1f
"""
CACHE_METRICS = """\
# HELP vllm:prefix_cache_queries Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0",model_name="bench"} %.1f
# HELP vllm:prefix_cache_hits Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{engine="0",model_name="bench"} %.1f
"""
ANY_MODEL = "bench"
REASONS = {200: "OK", 404: "Not Found", 500: "Internal Server Error"}
ORDERS = ("/timeline", "/refused", "/resize/", "/status/")


def tokens_of(body: bytes) -> int:
    """Return the length of a request's answer: log-normal, 40 tokens on average."""
    length = Random(crc32(body)).lognormvariate(0.0, SPREAD)  # noqa: S311
    return max(1, min(round(length * MEAN_TOKENS * 0.78), MAX_TOKENS))


def prompt_of(body: bytes) -> Prompt:
    """Return the prompt of a chat request, in a template of role and text."""
    messages = json.loads(body)["messages"]
    return Prompt.of("".join(f"<{each['role']}>{each['content']}" for each in messages))


class Server:
    """Runs the batch in real time, and serves it, for some models or for all."""

    def __init__(
        self, hardware: Hardware, cache: PrefixCache | None = None, models: Sequence[str] = ()
    ) -> None:
        self._batch = Batch(hardware, cache)
        self._models = models
        self._refused = 0
        self._status = 200
        self._name = ""
        self._ids = count()
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._work = asyncio.Event()
        self._completed = 0
        self._samples: list[tuple[float, int, int, int, int]] = []

    async def run(self, port: int = 0) -> None:
        """Serve forever, at any free port by default."""
        server = await asyncio.start_server(self._connect, HOST, port, backlog=2048)
        port = server.sockets[0].getsockname()[1]
        self._name = f"engine-{port}"
        print(port, flush=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._step())
            tasks.create_task(self._sample())
            tasks.create_task(server.serve_forever())

    async def _step(self) -> None:
        ends_at = time.monotonic()
        while True:
            seconds = self._batch.begin_step()
            if not seconds:
                self._work.clear()
                await self._work.wait()
                ends_at = time.monotonic()
                continue
            now = time.monotonic()
            # A step that was late shortens the next one, unless the machine is too slow for that.
            ends_at = max(ends_at, now - _LAG) + seconds
            await asyncio.sleep(ends_at - now)
            for request in self._batch.end_step():
                self._completed += 1
                waiter = self._waiters.pop(request)
                if not waiter.done():
                    waiter.set_result(None)

    async def _sample(self) -> None:
        while True:
            self._samples.append(self._now())
            await asyncio.sleep(SAMPLE_SECONDS)

    def _now(self) -> tuple[float, int, int, int, int]:
        batch = self._batch
        return time.time(), batch.tokens, batch.running, batch.waiting, self._completed

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(length_of(head))
                method, path, _ = head.split(b" ", 2)
                status, answer = await self._answer(method.decode(), path.decode(), body)
                writer.write(
                    b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (status, REASONS[status].encode(), len(answer), answer)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path.startswith(ORDERS):
            return 200, json.dumps(self._obey(path)).encode()
        if self._status != 200:
            return self._status, _error("The engine is broken.")
        if path == "/metrics":
            return 200, self._metrics().encode()
        if method == "GET":
            listed = [{"id": each, "object": "model"} for each in self._models or [ANY_MODEL]]
            return 200, json.dumps({"object": "list", "data": listed}).encode()
        model = json.loads(body)["model"] if self._models else ANY_MODEL
        if self._models and model not in self._models:
            self._refused += 1
            return 404, _error(f"The model `{model}` does not exist.", "model_not_found")
        return 200, await self._complete(body, model)

    def _obey(self, path: str) -> object:
        argument = path.rpartition("/")[2]
        if path.startswith("/resize/"):
            self._batch.resize(int(argument))
        elif path.startswith("/status/"):
            self._status = int(argument)
        elif path == "/refused":
            return self._refused
        else:
            return [*self._samples, self._now()]
        return {}

    def _metrics(self) -> str:
        batch, cache = self._batch, self._batch.cache
        found = METRICS % (batch.running, batch.waiting, batch.tokens, self._completed)
        return found if cache is None else found + CACHE_METRICS % (cache.queried, cache.hit)

    async def _complete(self, body: bytes, model: str) -> bytes:
        request, tokens = next(self._ids), tokens_of(body)
        waiter = self._waiters[request] = asyncio.get_running_loop().create_future()
        self._batch.add(request, tokens, prompt_of(body) if self._batch.cache else None)
        self._work.set()
        await waiter
        return (
            b'{"id":"chatcmpl-%d","object":"chat.completion","model":"%s","system_fingerprint":"%s",'
            b'"choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":20,"completion_tokens":%d,"total_tokens":%d}}'
            % (request, model.encode(), self._name.encode(), b"word " * tokens, tokens, 20 + tokens)
        )


def _error(message: str, code: str | None = None) -> bytes:
    kind = "server_error" if code is None else "invalid_request_error"
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


async def ask(url: str, bodies: Iterable[bytes], in_flight: int, seconds: float | None) -> float:
    """Send requests over `in_flight` connections, for a time if one is given; return when that began."""
    host, port = _address(url)
    left = iter(bodies)

    async def work() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for body in left:
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/"
                b"json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            answer = await reader.readexactly(length_of(head))
            if b" 200 " not in head[:16]:
                raise SystemExit(f"The engine answered: {answer[:400].decode()}")

    began = time.time()
    tasks = [asyncio.create_task(work()) for _ in range(in_flight)]
    done, running = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in running:
        task.cancel()
    for task in done:
        task.result()
    return began


async def send(url: str, bodies: Iterable[bytes], in_flight: int) -> float:
    """Send each request once; return the seconds until the last answer."""
    began = await ask(url, bodies, in_flight, None)
    return time.time() - began


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or HOST, parts.port or 80


def length_of(head: bytes) -> int:
    """Return the Content-Length of a request or a response."""
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)


def _bodies(path: str) -> list[bytes]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.dumps(json.loads(line)["body"]).encode() for line in lines]


async def _serve(max_num_seqs: str, blocks: str = "0", port: str = "0", *models: str) -> None:
    cache = PrefixCache(int(blocks)) if int(blocks) else None
    await Server(Hardware(int(max_num_seqs)), cache, models).run(int(port))


if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    if step == "serve":
        asyncio.run(_serve(*arguments))
    elif step == "send":
        url, path, number = arguments
        print(json.dumps(asyncio.run(send(url, _bodies(path), int(number)))))
    else:
        url, path, seconds, *numbers = arguments
        bodies = _bodies(path)
        tries = [asyncio.run(ask(url, cycle(bodies), int(n), float(seconds))) for n in numbers]
        print(json.dumps(tries))
