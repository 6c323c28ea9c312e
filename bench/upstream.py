"""An OpenAI-compatible upstream of fixed latency, and a bare asyncio client of it.

    python -m bench.upstream serve SECONDS                  prints its port
    python -m bench.upstream ask PORT REQUESTS IN_FLIGHT    prints its figures as one JSON line

The client does the minimum: connections that stay open, one request at a time on each, and the
response read in full. It neither parses nor stores the response.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

HOST = "127.0.0.1"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x" * 150},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60},
    }
).encode()
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: req_0\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
)
BODY = json.dumps(
    {"model": "bench", "messages": [{"role": "user", "content": "y" * 400}], "max_tokens": 64}
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


async def serve(latency: float) -> None:
    """Answer every request after `latency` seconds, forever."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(_length(head))
                await asyncio.sleep(latency)
                writer.write(RESPONSE)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def ask(port: int, requests: int, in_flight: int) -> dict[str, float]:
    """Send requests over `in_flight` connections."""
    left = iter(range(requests))

    async def work() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for _ in left:
            writer.write(REQUEST)
            await reader.readexactly(_length(await reader.readuntil(b"\r\n\r\n")))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    return {"seconds": time.perf_counter() - began, "requests": requests}


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)


if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    if step == "serve":
        asyncio.run(serve(float(arguments[0])))
    else:
        port, requests, in_flight = map(int, arguments)
        print(json.dumps(asyncio.run(ask(port, requests, in_flight))))
