"""Object storage in a local folder or a cloud bucket, through obstore."""

from __future__ import annotations

import glob
import os
from bisect import bisect_right
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, S3Store, from_url

from lowtide.core.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self


class ObjectWriter(Protocol):
    """An object being written; it exists only after the block ends without an exception."""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class ObjectStore(Protocol):
    """A store of objects by key."""

    def open_writer(self, key: str) -> ObjectWriter:
        """Start an object; memory stays bounded for any size."""
        ...

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end`; raises NotFound for an unknown key."""
        ...

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Return the bytes of each (offset, length); near ranges are fetched together.

        A range that exceeds the object is truncated, or empty.
        """
        ...

    async def fetch_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Read ranges as `read_ranges` does, without blocking; cancelling ends the read."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; unknown keys are ignored."""
        ...

    def check(self) -> None:
        """Raise Unavailable if the store does not respond."""
        ...


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a list, and when it was written by the clock of the store."""

    key: str
    at: datetime


CHUNK: Final = 1024 * 1024

# One part being filled and two in flight are 24 MiB; the 10,000 parts of an upload hold 80 GB.
_PART: Final = 8 * CHUNK
_PARTS_IN_FLIGHT: Final = 2
_WINDOW: Final = 4 * CHUNK
# The lines of a claim are often apart: reading larger gaps would cost more than a second GET.
_GAP: Final = 64 * 1024
_FAILURES: Final = (BaseError, OSError)
_PROBE: Final = "lowtide-probe"
_ENDPOINTS: Final = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT",
    "AZURE_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)
AMAZON: Final = ("s3", "s3a")
"""The URL schemes of S3."""
GOOGLE: Final = ("gs",)
"""The URL schemes of Google Cloud Storage."""
AZURE: Final = ("az", "azure", "abfs", "abfss")
"""The URL schemes of Azure Blob Storage."""
CLOUDS: Final = (*AMAZON, *GOOGLE, *AZURE)
"""The URL schemes of buckets."""


class ObstoreObjects:
    """The object store at a URL.

    `file:///path` is a folder, created if missing; `s3://bucket/prefix`, `gs://…` and `az://…` are
    existing buckets, with credentials from the clouds' usual environment variables; `memory://` is
    for tests. Raises ValueError for another URL. A missing key is NotFound; any other failure is
    Unavailable, after a few retries if the store is remote.

    Do not use it before a fork: obstore's threads do not survive one.
    """

    def __init__(self, url: str) -> None:
        scheme = urlsplit(url).scheme
        self._folder: Path | None = None
        self._store: Any
        if scheme == "file":
            self._folder = _folder_of(url)
            try:
                self._store = LocalStore(self._folder, mkdir=True)
            except OSError as error:
                raise ValueError(f"The object store {url!r} cannot be opened: {error}") from error
        elif scheme == "memory":
            self._store = MemoryStore()
        elif scheme in CLOUDS:
            self._store = remote_store(url)
        else:
            raise ValueError(
                f"The object store URL {url!r} must start with file:///, s3://, gs:// or az://."
            )

    def open_writer(self, key: str) -> ObstoreWriter:
        """Start an object, written in parts of 8 MiB; readers see it only once it is complete."""
        return ObstoreWriter(self._store, key, self._folder)

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end`, or the object's end, in pieces of 1 MiB.

        Readers may be slow: no request to the store is open between pieces. Raises Unavailable if
        the object is replaced meanwhile.
        """
        with store_errors(key):
            head = obstore.head(self._store, key)
        size = head["size"]
        end = size if end is None else min(end, size)
        for position in range(start, end, _WINDOW):
            stop = min(position + _WINDOW, end)
            options: Any = {"range": (position, stop), "if_match": head["e_tag"]}
            with store_errors(key):
                window = memoryview(obstore.get(self._store, key, options=options).bytes())
            _check_size(key, stop - position, len(window))
            for offset in range(0, len(window), CHUNK):
                yield bytes(window[offset : offset + CHUNK])

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Return the bytes of each (offset, length); ranges up to 64 KiB apart are read as one.

        A range that exceeds the object is truncated, or empty.
        """
        try:
            with self._reading(key):
                return self._read(key, ranges)
        except Unavailable as error:
            try:
                with self._reading(key):
                    size = obstore.head(self._store, key)["size"]
            except NotFound:
                raise error from None
            if _within(ranges, size) == list(ranges):
                raise
        with self._reading(key):
            return self._read(key, _within(ranges, size))

    async def fetch_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Read ranges as `read_ranges` does, without blocking; cancelling ends the read."""
        try:
            with self._reading(key):
                return await self._fetch(key, ranges)
        except Unavailable as error:
            # A range beyond the object's end fails like any other error: compare with the size.
            try:
                with self._reading(key):
                    size = (await obstore.head_async(self._store, key))["size"]
            except NotFound:
                # A response to HEAD has no body, which would identify a missing bucket.
                raise error from None
            if _within(ranges, size) == list(ranges):
                raise
        with self._reading(key):
            return await self._fetch(key, _within(ranges, size))

    def _read(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        regions = _regions(ranges)
        starts, ends = [region[0] for region in regions], [region[1] for region in regions]
        blobs = obstore.get_ranges(self._store, key, starts=starts, ends=ends, coalesce=0)
        return _cut(ranges, regions, blobs)

    async def _fetch(self, key: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        regions = _regions(ranges)
        starts, ends = [region[0] for region in regions], [region[1] for region in regions]
        blobs = await obstore.get_ranges_async(
            self._store, key, starts=starts, ends=ends, coalesce=0
        )
        return _cut(ranges, regions, blobs)

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Convert errors; a missing folder or bucket is Unavailable, not NotFound."""
        try:
            with store_errors(key):
                yield
        except NotFound as error:
            is_missing = self._folder is not None and not self._folder.is_dir()
            if is_missing or "NoSuchBucket" in str(error.__cause__):
                raise _unavailable(error) from error
            raise

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, in place of an older one."""
        with store_errors():
            obstore.put(self._store, key, data, use_multipart=False)
            self._synced(key)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object unless it exists, atomically; return False if it does.

        After a lost answer it may exist because of this very call.
        """
        with store_errors():
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            self._synced(key)
        return True

    def read(self, key: str) -> bytes | None:
        """Return a small object; None if there is none."""
        try:
            with self._reading(key):
                return bytes(obstore.get(self._store, key).bytes())
        except NotFound:
            return None

    def objects_in(self, prefix: str) -> Iterator[ListedObject]:
        """Yield the objects in the folder `prefix`, sorted by key where the store does that."""
        with store_errors():
            for page in obstore.list(self._store, prefix=prefix):
                for each in page:
                    yield ListedObject(each["path"], each["last_modified"])

    def _synced(self, key: str) -> None:
        if self._folder is not None:
            # Another process may have deleted it already.
            with suppress(FileNotFoundError):
                _sync(self._folder, key)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; unknown keys are ignored."""
        if not keys:
            return
        if self._folder is not None:
            _remove_staged(self._folder, keys)
        try:
            obstore.delete(self._store, list(keys))
        except FileNotFoundError:
            # In a folder, deletion stops at the first missing file, possibly before others.
            for key in keys:
                self._delete_one(key)
        except _FAILURES as error:
            raise _unavailable(error) from error

    def check(self) -> None:
        """Raise Unavailable if the store does not respond, or a folder is not writable."""
        if self._folder is not None and not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            raise Unavailable("The object store's directory is missing or not writable.")
        with store_errors():
            obstore.list_with_delimiter(self._store, _PROBE)

    def _delete_one(self, key: str) -> None:
        with suppress(NotFound), store_errors(key):
            obstore.delete(self._store, key)


class ObstoreWriter:
    """An object being written; an exception inside the block leaves nothing behind.

    A killed process leaves nothing under the key either, but a staging file (`key#1` in a folder),
    which goes when the key is deleted, or an open multipart upload, which the bucket's lifecycle
    rule should expire.
    """

    def __init__(self, store: Any, key: str, folder: Path | None) -> None:
        self._key = key
        self._folder = folder
        self._file = obstore.open_writer(
            store, key, buffer_size=_PART, max_concurrency=_PARTS_IN_FLIGHT
        )

    def write(self, data: bytes) -> None:
        """Append bytes."""
        with store_errors():
            self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._abort(kind, error, trace)
            return
        with store_errors():
            self._file.close()
            if self._folder is not None:
                _sync(self._folder, self._key)

    def _abort(
        self,
        kind: type[BaseException],
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.__exit__(kind, error, trace)
        except _FAILURES as failure:
            if error is not None:
                error.add_note(f"The upload could not be aborted: {failure}")


@contextmanager
def store_errors(key: str | None = None) -> Iterator[None]:
    """Convert obstore's errors; addresses stay in the cause, for the log.

    With a `key`, a missing file is its object: NotFound. Without one, it is the store itself.
    """
    try:
        yield
    except _FAILURES as error:
        if key is not None and isinstance(error, FileNotFoundError):
            raise NotFound(f"Object {key!r} not found.") from error
        raise _unavailable(error) from error


def _regions(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge ranges that are near each other into regions (start, end) to read.

    obstore would also merge them, but panics if the object ends before a region does.
    """
    regions: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if regions and offset - regions[-1][1] <= _GAP:
            start, end = regions.pop()
            regions.append((start, max(end, offset + length)))
        elif length:
            regions.append((offset, offset + length))
    return regions


def _within(ranges: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Truncate ranges to an object of `size` bytes."""
    return [(min(offset, size), min(length, max(size - offset, 0))) for offset, length in ranges]


def _cut(
    ranges: Sequence[tuple[int, int]], regions: Sequence[tuple[int, int]], blobs: Sequence[Any]
) -> Sequence[bytes]:
    """Return the bytes of each range out of the regions that were read."""
    views = [memoryview(blob) for blob in blobs]
    starts = [start for start, _ in regions]
    pieces: list[bytes] = []
    for offset, length in ranges:
        region = bisect_right(starts, offset) - 1
        position = offset - starts[region] if length else 0
        pieces.append(bytes(views[region][position : position + length]) if length else b"")
    return pieces


def _unavailable(error: Exception) -> Unavailable:
    name = type(error).__name__
    return Unavailable(f"The object store failed ({name}): try again.")


def _check_size(key: str, expected: int, size: int) -> None:
    if size != expected:
        raise Unavailable(f"Object {key!r} is truncated: {size} of {expected} bytes.")


def _folder_of(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc not in {"", "localhost"} or not path.is_absolute():
        raise ValueError(f"The object store URL {url!r} must have an absolute path: file:///path.")
    return path


def remote_store(url: str, endpoint: str | None = None) -> Any:
    """Open a bucket with the environment's credentials, at the clouds' usual endpoint or another."""
    # AWS_ALLOW_HTTP, too, is replaced by the options of the client.
    endpoints = [endpoint or "", *(os.environ.get(name, "") for name in _ENDPOINTS)]
    is_plaintext = any(each.startswith("http://") for each in endpoints)
    is_plaintext = is_plaintext or os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true"}
    if endpoint is None:
        return open_cloud(url, is_plaintext=is_plaintext)
    parts = urlsplit(url)
    if parts.scheme in AMAZON:
        # Only this name has precedence over AWS_ENDPOINT_URL_S3, and from_url refuses it.
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            aws_endpoint_url_s3=endpoint,
            **_client(is_plaintext=is_plaintext),
        )
    config: Any = {"base_url" if parts.scheme in GOOGLE else "endpoint": endpoint}
    return open_cloud(url, is_plaintext=is_plaintext, config=config)


def open_cloud(url: str, *, is_plaintext: bool, **settings: Any) -> Any:
    """Open a cloud bucket with obstore's `settings`; requests time out and are retried."""
    return from_url(url, **_client(is_plaintext=is_plaintext), **settings)


def _client(*, is_plaintext: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"connect_timeout": "5s", "timeout": "60s"}
    if is_plaintext:
        options["allow_http"] = True
    retries = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
    return {"client_options": options, "retry_config": retries}


def _remove_staged(folder: Path, keys: Sequence[str]) -> None:
    """Remove the staging files that killed processes left."""
    for key in keys:
        path = folder / key
        for staged in path.parent.glob(f"{glob.escape(path.name)}#*"):
            staged.unlink(missing_ok=True)


def _sync(folder: Path, key: str) -> None:
    """Sync a new file, to survive a power failure: obstore renames it into place without a sync."""
    path = folder / key
    parents = path.parents
    for entry in (path, *parents[: parents.index(folder) + 1]):
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
