"""One tenant's way into the API: patient with what a fault may do, and with nothing else."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE = 240.0
_PASSING = {408, 429, 500, 502, 503, 504}


class RefusedError(Exception):
    """The API answered a 4xx: no fault of the system may lead to one."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body[:300]}")
        self.status = status


class Api:
    """A client that asks again until it is answered; raises RefusedError, or TimeoutError at last.

    `statuses` counts every answer; `report` gets those of 500: a fault is a 503 or a 504.
    """

    def __init__(self, base_url: str, key: str, report: Callable[[str, str], None]) -> None:
        self._client = httpx.Client(
            base_url=f"{base_url}/v1",
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(20.0),
            limits=httpx.Limits(max_keepalive_connections=4),
        )
        self.statuses: Counter[int] = Counter()
        self._report = report
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def upload(self, data: bytes) -> str:
        """Upload a batch file; return its id."""
        sent = self._patiently(
            lambda: self._client.post(
                "/files", data={"purpose": "batch"}, files={"file": ("input.jsonl", data)}
            )
        )
        found: str = sent.json()["id"]
        return found

    def create(self, file: str, endpoint: str, window: str, key: str) -> dict[str, Any]:
        """Create a batch, once however often it is sent."""
        body = {"input_file_id": file, "endpoint": endpoint, "completion_window": window}
        headers = {"Idempotency-Key": key}
        return self._json(lambda: self._client.post("/batches", json=body, headers=headers))

    def batch(self, batch: str) -> dict[str, Any]:
        """Return a batch."""
        return self._json(lambda: self._client.get(f"/batches/{batch}"))

    def cancel(self, batch: str) -> None:
        """Cancel a batch; one that has ended already is left alone."""
        try:
            self._json(lambda: self._client.post(f"/batches/{batch}/cancel"))
        except RefusedError as error:
            if error.status not in {400, 409}:
                raise

    def content(self, file: str | None) -> bytes:
        """Return a file's bytes; no file has none."""
        if file is None:
            return b""
        return self._patiently(lambda: self._client.get(f"/files/{file}/content")).content

    def batches(self) -> list[str]:
        """Return the ids of the newest batches."""
        page = self._json(lambda: self._client.get("/batches", params={"limit": 100}))
        return [one["id"] for one in page["data"]]

    def status_of(self, path: str) -> int:
        """Return the status that a GET is answered with, sooner or later."""
        try:
            return self._patiently(lambda: self._client.get(path)).status_code
        except RefusedError as error:
            return error.status

    def _json(self, send: Callable[[], httpx.Response]) -> dict[str, Any]:
        found: dict[str, Any] = self._patiently(send).json()
        return found

    def _patiently(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                response = send()
            except httpx.HTTPError:
                response = None
            with self._lock:
                self.statuses[0 if response is None else response.status_code] += 1
            if response is not None and response.status_code == 500:
                asked = f"{response.request.method} {response.request.url.path}"
                self._report("http 500", f"{asked}: {response.text[:300]}")
            if response is not None and response.status_code not in _PASSING:
                if response.is_success:
                    return response
                raise RefusedError(response.status_code, response.text)
            if time.monotonic() > deadline:
                last = "no answer" if response is None else f"HTTP {response.status_code}"
                raise TimeoutError(f"not answered in {_PATIENCE:g} s, the last time: {last}")
            time.sleep(0.3)
