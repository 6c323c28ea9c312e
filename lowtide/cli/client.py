"""The CLI's use of the API through the official client: submit a file, follow a batch, download."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import httpx
import msgspec
from openai import APIConnectionError, APIStatusError, OpenAI

from lowtide.batches.model import FINAL_STATUSES
from lowtide.cli.downloads import DownloadFailed, write
from lowtide.cli.uploads import LARGE, LargeUpload
from lowtide.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from openai.types import Batch

    from lowtide.cli.progress import UploadProgress


_SUBMITS = uuid.UUID("1b7d5a9e-6f0c-4c58-9f6e-0f6a5d1c2b3a")
_RETRIES = 8
_TIMEOUT = 600.0
_PIECE = 1 << 20
_FINAL = frozenset(status.value for status in FINAL_STATUSES)


def open_client(base_url: str, api_key: str) -> OpenAI:
    """Return a client that retries through short outages."""
    return OpenAI(base_url=base_url.rstrip("/") + "/v1", api_key=api_key, max_retries=_RETRIES)


@dataclass(frozen=True, slots=True)
class Terms:
    """The parameters of a new batch, whatever its input."""

    window: str = "24h"
    user: str | None = None
    output_url: str | None = None
    priority: int = 0

    @property
    def metadata(self) -> dict[str, str] | None:
        """The metadata, which names the user."""
        return {"user": self.user} if self.user else None

    @property
    def extra(self) -> dict[str, object]:
        """The parameters that OpenAI does not have."""
        extra: dict[str, object] = {"output_url": self.output_url} if self.output_url else {}
        return extra | ({"x_lowtide": {"priority": self.priority}} if self.priority else {})


def submit(client: OpenAI, file: Path, terms: Terms, *, progress: UploadProgress) -> Batch:
    """Upload a file, and create a batch for the endpoint in its first line.

    A large file is sent in parts; submitting it again after an interruption sends the others.
    """

    def create(file_id: str, headers: Mapping[str, str] = {}) -> Batch:
        # The client's types allow only OpenAI's own endpoints and the window 24h.
        return client.batches.create(
            input_file_id=file_id,
            endpoint=cast("Any", first_endpoint(file)),
            completion_window=cast("Any", terms.window),
            metadata=terms.metadata,
            extra_headers=headers,
            extra_body=terms.extra,
        )

    if file.stat().st_size <= LARGE:
        with file.open("rb") as stream:
            return create(client.files.create(file=(file.name, stream), purpose="batch").id)
    upload = LargeUpload(client, file, progress)
    file_id = upload.finish()
    # Of a submit that was killed before it could forget the upload, the next one finds the batch.
    key = uuid.uuid5(_SUBMITS, msgspec.json.encode([upload.id, terms]).decode())
    batch = create(file_id, {"Idempotency-Key": f"submit-{key}"})
    upload.forget()
    return batch


def submit_url(client: OpenAI, url: str, terms: Terms, *, endpoint: str) -> Batch:
    """Create a batch of an object in a registered bucket."""
    from openai.types import Batch

    body = {
        "input_url": url,
        "endpoint": endpoint,
        "completion_window": terms.window,
        "metadata": terms.metadata,
        **terms.extra,
    }
    # The client's own method requires a file id.
    return client.post("/batches", body=body, cast_to=Batch)


def first_endpoint(file: Path) -> str:
    """Return the `url` in a file's first line, else the chat endpoint."""
    with file.open("rb") as stream:
        try:
            url = msgspec.json.decode(stream.readline().removeprefix(b"\xef\xbb\xbf")).get("url")
        except (msgspec.DecodeError, AttributeError, UnicodeDecodeError):
            url = None
    return url if isinstance(url, str) else "/v1/chat/completions"


def follow(read: Callable[[], Batch], batch: Batch, show: Callable[[Batch], None]) -> Batch:
    """Poll the batch with `read` and call `show` until it has ended; return it."""
    while True:
        show(batch)
        if batch.status in _FINAL:
            return batch
        time.sleep(0.5)
        batch = _refresh(read, batch)


def stream(client: OpenAI, path: str, query: Mapping[str, str | list[str]] = {}) -> Iterator[bytes]:
    """Yield a response in pieces; raises DownloadFailed."""
    try:
        with httpx.stream(
            "GET",
            f"{client.base_url}{path}",
            params=query,
            headers=client.auth_headers,
            timeout=_TIMEOUT,
            # A download may be at the object store, which gets no key.
            follow_redirects=True,
        ) as response:
            if not response.is_success:
                raise DownloadFailed(_message(response.read()))
            yield from response.iter_bytes(_PIECE)
    except httpx.TransportError as error:
        raise DownloadFailed(
            f"The download was interrupted ({type(error).__name__}). Try again."
        ) from error


def save(client: OpenAI, batch: Batch, out: Path) -> dict[str, str]:
    """Download a batch's output file to `out` and its error file beside it; return their paths.

    `out` is created empty for a batch without an output file. Raises DownloadFailed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(b"")
    paths = {"output": str(out)}
    if batch.output_file_id:
        write(stream(client, f"files/{batch.output_file_id}/content"), out)
    if batch.error_file_id:
        errors = out.with_name(f"{out.stem}.errors{out.suffix}")
        write(stream(client, f"files/{batch.error_file_id}/content"), errors)
        paths["errors"] = str(errors)
    return paths


def extension(batch: Batch) -> dict[str, Any]:
    """Return a batch's `x_lowtide` object, Lowtide's extension of OpenAI's format."""
    extra = (batch.model_extra or {}).get("x_lowtide")
    return extra if isinstance(extra, dict) else {}


def _message(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return "The response is not from a Lowtide server. Check --url."


def _refresh(read: Callable[[], Batch], batch: Batch) -> Batch:
    """Return the current batch, or `batch` itself while the server or database is unavailable."""
    try:
        return read()
    except (APIConnectionError, Unavailable):
        return batch
    except APIStatusError as error:
        if error.status_code < 500:
            raise
        return batch


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a finished batch; `seconds` from creation to the end."""

    requests: int
    outcomes: dict[str, int]
    seconds: float
    pools: dict[str, int]
    interruptions: int
    retries: int
    escalations: int
    cost: dict[str, Any]

    @property
    def requests_per_second(self) -> float:
        """The throughput from creation to the end."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0


def seconds_of(batch: Batch) -> float:
    """Return the seconds from a batch's creation to its end, 0 before that."""
    ended_at = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    return float((ended_at or batch.created_at) - batch.created_at)


def summarize(batch: Batch, seconds: float) -> Summary:
    """Return the figures of a finished batch."""
    counts = batch.request_counts
    extra = extension(batch)
    return Summary(
        requests=counts.total if counts else 0,
        outcomes=extra.get("outcomes", {}),
        seconds=seconds,
        pools=extra.get("pools", {}),
        interruptions=extra.get("interruptions", 0),
        retries=extra.get("retries", 0),
        escalations=extra.get("escalations", 0),
        cost=extra.get("cost", {}),
    )
