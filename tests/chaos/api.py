"""A tenant's API client that retries errors that a fault may cause, and no others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PATIENCE = 240.0
_RETRYABLE = {408, 429, 500, 502, 503, 504}


class RefusedError(Exception):
    """The API returned a 4xx, which no fault of the system may cause."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body[:300]}")
        self.status = status


class Api:
    """A client that retries until it succeeds; raises RefusedError, or TimeoutError at the end.

    `statuses` counts every response. `report` is called for each 500: a fault must be a 503 or 504.
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
        response = self._retry(
            lambda: self._client.post(
                "/files", data={"purpose": "batch"}, files={"file": ("input.jsonl", data)}
            )
        )
        file: str = response.json()["id"]
        return file

    def upload_parts(self, pieces: Sequence[bytes], order: Sequence[int]) -> str:
        """Upload a batch file in parts, sent in `order`; return its id."""
        about = {
            "purpose": "batch", "filename": "input.jsonl", "mime_type": "application/jsonl",
            "bytes": sum(map(len, pieces)),
        }  # fmt: skip
        upload = self._json(lambda: self._client.post("/uploads", json=about))["id"]
        parts = {
            number: self._json(
                partial(
                    self._client.post,
                    f"/uploads/{upload}/parts",
                    files={"data": ("part", pieces[number])},
                )
            )["id"]
            for number in order
        }
        body = {"part_ids": [parts[number] for number in range(len(pieces))]}
        complete = self._json(lambda: self._client.post(f"/uploads/{upload}/complete", json=body))
        file: str = complete["file"]["id"]
        return file

    def delete(self, file: str | None) -> None:
        """Delete a file, unless it is gone already."""
        if file is None:
            return
        try:
            self._retry(lambda: self._client.delete(f"/files/{file}"))
        except RefusedError as error:
            if error.status != 404:
                raise

    def create(self, file: str, endpoint: str, window: str, key: str) -> dict[str, Any]:
        """Create a batch idempotently."""
        body = {"input_file_id": file, "endpoint": endpoint, "completion_window": window}
        headers = {"Idempotency-Key": key}
        return self._json(lambda: self._client.post("/batches", json=body, headers=headers))

    def batch(self, batch: str) -> dict[str, Any]:
        """Return a batch."""
        return self._json(lambda: self._client.get(f"/batches/{batch}"))

    def cancel(self, batch: str) -> None:
        """Cancel a batch, unless it has ended already."""
        try:
            self._json(lambda: self._client.post(f"/batches/{batch}/cancel"))
        except RefusedError as error:
            if error.status not in {400, 409}:
                raise

    def content(self, file: str | None) -> bytes:
        """Return the bytes of a file; none for None."""
        if file is None:
            return b""
        return self._retry(lambda: self._client.get(f"/files/{file}/content")).content

    def batches(self) -> list[str]:
        """Return the ids of the newest batches."""
        page = self._json(lambda: self._client.get("/batches", params={"limit": 100}))
        return [one["id"] for one in page["data"]]

    def status_of(self, path: str) -> int:
        """Return the final status of a GET."""
        try:
            return self._retry(lambda: self._client.get(path)).status_code
        except RefusedError as error:
            return error.status

    def _json(self, send: Callable[[], httpx.Response]) -> dict[str, Any]:
        body: dict[str, Any] = self._retry(send).json()
        return body

    def _retry(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                response = send()
            except httpx.HTTPError:
                response = None
            with self._lock:
                self.statuses[0 if response is None else response.status_code] += 1
            if response is not None and response.status_code == 500:
                call = f"{response.request.method} {response.request.url.path}"
                self._report("http 500", f"{call}: {response.text[:300]}")
            if response is not None and response.status_code not in _RETRYABLE:
                if response.is_success:
                    return response
                raise RefusedError(response.status_code, response.text)
            if time.monotonic() > deadline:
                last = "no answer" if response is None else f"HTTP {response.status_code}"
                raise TimeoutError(f"no success in {_PATIENCE:g} s, last: {last}")
            time.sleep(0.3)
