"""The server under test, by raw HTTP and by OpenAI's client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import httpx
from openai import AsyncOpenAI, OpenAI

from tests import oracle
from tests.conformance.lines import CHAT
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conformance.engine import Engine
    from tests.e2e.stacks import LocalStack

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_TIMEOUT = 60.0
MAX_RUN = 150.0


@dataclass(frozen=True)
class Own:
    """The suite's own stack: its engine, and a batch that expires."""

    stack: LocalStack
    engine: Engine
    expiring: dict[str, Any]


@dataclass
class Server:
    """One server; `own` is None for an external server."""

    base_url: str
    api_key: str
    own: Own | None = None

    @cached_property
    def http(self) -> httpx.Client:
        """Raw HTTP with the key."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.Client(
            base_url=self.base_url, headers=headers, timeout=_TIMEOUT, follow_redirects=True
        )

    @cached_property
    def anonymous(self) -> httpx.Client:
        """Raw HTTP without a key."""
        return httpx.Client(base_url=self.base_url, timeout=_TIMEOUT)

    @cached_property
    def sync(self) -> OpenAI:
        """The official sync client."""
        return OpenAI(base_url=f"{self.base_url}/v1", api_key=self.api_key, timeout=_TIMEOUT)

    def close(self) -> None:
        """Close all connections."""
        for client in (self.http, self.anonymous, self.sync):
            client.close()

    def json(self, path: str, **parameters: Any) -> dict[str, Any]:
        """Return the JSON object of a GET."""
        response = self.http.get(path, params=parameters)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def upload(self, data: bytes, name: str = "input.jsonl", **fields: str) -> dict[str, Any]:
        """Return the File object of an upload."""
        response = self.http.post(
            "/v1/files", files={"file": (name, data)}, data={"purpose": "batch", **fields}
        )
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def create(
        self, data: bytes, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Upload a file, and create a batch from it; return the Batch object."""
        body = {
            "input_file_id": self.upload(data)["id"],
            "endpoint": CHAT,
            "completion_window": "24h",
            **fields,
        }
        response = self.http.post("/v1/batches", json=body, headers=headers)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def batch(self, batch_id: str) -> dict[str, Any]:
        """Return a Batch object."""
        return self.json(f"/v1/batches/{batch_id}")

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Cancel a batch, and return it."""
        response = self.http.post(f"/v1/batches/{batch_id}/cancel")
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def follow(
        self, created: dict[str, Any], before: Sequence[dict[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """Poll a batch until it ends; return its states, after the oracle has checked them."""
        states = [created, *before]

        def has_ended() -> bool:
            states.append(self.batch(created["id"]))
            return states[-1]["status"] in FINAL

        until(has_ended, f"{created['id']} ends", within=MAX_RUN, every=0.1)
        oracle.check_history(states)
        return states

    def finish(self, created: dict[str, Any]) -> dict[str, Any]:
        """Return a batch once it has ended."""
        return self.follow(created)[-1]

    def content(self, file_id: str | None) -> bytes:
        """Return a file's bytes; b"" for None."""
        if file_id is None:
            return b""
        response = self.http.get(f"/v1/files/{file_id}/content")
        assert response.status_code == 200, response.text
        return response.content


class Official(Protocol):
    """OpenAI's client, sync or async; without retries, so that a test gets the server's first answer."""

    def __call__(self, ask: Callable[[Any], Any]) -> Any:
        """Return the result of a call on the client."""

    def everything(self, ask: Callable[[Any], Any]) -> list[Any]:
        """Return all objects of a list, by the client's own paging."""

    def close(self) -> None:
        """Close its connections."""


class SyncOfficial:
    """`openai.OpenAI`."""

    def __init__(self, server: Server) -> None:
        self._client = OpenAI(
            base_url=f"{server.base_url}/v1",
            api_key=server.api_key,
            max_retries=0,
            timeout=_TIMEOUT,
        )

    def __call__(self, ask: Callable[[Any], Any]) -> Any:
        return ask(self._client)

    def everything(self, ask: Callable[[Any], Any]) -> list[Any]:
        return list(ask(self._client))

    def close(self) -> None:
        self._client.close()


class AsyncOfficial:
    """`openai.AsyncOpenAI`."""

    def __init__(self, server: Server) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncOpenAI(
            base_url=f"{server.base_url}/v1",
            api_key=server.api_key,
            max_retries=0,
            timeout=_TIMEOUT,
        )

    def __call__(self, ask: Callable[[Any], Any]) -> Any:
        async def call() -> Any:
            return await ask(self._client)

        return self._runner.run(call())

    def everything(self, ask: Callable[[Any], Any]) -> list[Any]:
        async def call() -> list[Any]:
            return [each async for each in ask(self._client)]

        return self._runner.run(call())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()
