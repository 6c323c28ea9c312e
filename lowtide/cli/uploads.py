"""Large files: sent in parts, several at a time, and from where an earlier attempt ended."""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
from openai import APIConnectionError, APIStatusError, AsyncOpenAI
from platformdirs import user_state_path

from lowtide.cli.output import fail
from lowtide.files.model import Purpose
from lowtide.uploads.model import MAX_PARTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai import OpenAI

    from lowtide.cli.progress import UploadProgress


LARGE: Final = 64 << 20
"""Files with more bytes are sent in parts."""
PART_BYTES: Final = 16 << 20
PARALLEL: Final = 4
_RETRIES: Final = 8
_MAX_DELAY: Final = 16.0
_ENDED: Final = (404, 409)
_TEMPORARY: Final = (408, 429)
# The server forgets an upload a day after it has expired.
_FORGOTTEN_SECONDS: Final = 86_400


class _ChangedError(Exception):
    """The file ended before a part that it had at the start."""


class Sent(msgspec.Struct):
    """What is known of an upload: its parts by their number, which start at 0."""

    upload_id: str
    expires_at: int
    part_bytes: int
    parts: dict[int, str] = {}


class Memory:
    """The uploads that are under way, a small file each in the user's state folder.

    An upload is found again by the file's path, size and time, the server and the key.
    """

    def __init__(self, client: OpenAI, file: Path) -> None:
        found = file.stat()
        self.size = found.st_size
        self._file = file
        self._identity = (found.st_size, found.st_mtime_ns)
        words = [str(file.resolve()), *self._identity, str(client.base_url), client.api_key]
        name = hashlib.sha256(msgspec.json.encode(words)).hexdigest()
        self._path = user_state_path("lowtide") / "uploads" / f"{name}.json"

    def is_same_file(self) -> bool:
        """Return whether the file is as it was at the start."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return False
        return self._identity == (found.st_size, found.st_mtime_ns)

    def load(self) -> Sent | None:
        """Return what an earlier attempt has sent."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Sent)
        except (OSError, msgspec.DecodeError):
            return None

    def save(self, sent: Sent) -> None:
        """Remember what is sent; without a state folder, uploads cannot be resumed."""
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            written = self._path.with_suffix(".new")
            written.write_bytes(msgspec.json.encode(sent))
            written.replace(self._path)

    def forget(self) -> None:
        """Forget this upload, and those that the server has forgotten."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            for path in self._path.parent.iterdir():
                if path.stat().st_mtime < time.time() - 2 * _FORGOTTEN_SECONDS:
                    path.unlink(missing_ok=True)


class LargeUpload:
    """The upload of one large file."""

    def __init__(self, client: OpenAI, file: Path, progress: UploadProgress) -> None:
        self._client = client
        self._file = file
        self._progress = progress
        self._memory = Memory(client, file)
        self._sent: Sent | None = None

    @property
    def id(self) -> str:
        """The id of the finished upload."""
        assert self._sent is not None  # noqa: S101 - finish() has returned
        return self._sent.upload_id

    def finish(self) -> str:
        """Send what is missing, complete the upload and return its file's id.

        Keeps what is sent if it is interrupted. Raises the client's errors.
        """
        earlier = self._resumable()
        if earlier is not None:
            try:
                return self._finish(earlier)
            except APIStatusError as error:
                if error.status_code not in _ENDED:
                    raise
                self._progress.note("The upload of an earlier attempt has ended: starting again.")
        return self._finish(self._create())

    def forget(self) -> None:
        """Forget the upload: its file is in use."""
        self._memory.forget()

    def _resumable(self) -> Sent | None:
        sent = self._memory.load()
        if sent is None or not sent.parts:
            return None
        missing = math.ceil(self._memory.size / sent.part_bytes) - len(sent.parts)
        if missing and sent.expires_at <= time.time():
            self._progress.note("The upload of an earlier attempt has expired: starting again.")
            return None
        return sent

    def _create(self) -> Sent:
        size = self._memory.size
        upload = self._client.uploads.create(
            bytes=size,
            filename=self._file.name,
            mime_type="application/jsonl",
            purpose=Purpose.BATCH.value,
        )
        part_bytes = max(PART_BYTES, math.ceil(size / MAX_PARTS))
        sent = Sent(upload.id, upload.expires_at, part_bytes)
        self._memory.save(sent)
        return sent

    def _finish(self, sent: Sent) -> str:
        self._sent = sent
        with self._progress.of(self._memory.size, self._bytes_sent(sent)):
            try:
                asyncio.run(self._send_missing(sent))
            except (KeyboardInterrupt, APIConnectionError):
                self._say_how_to_go_on(sent)
                raise
            except APIStatusError as error:
                if _is_temporary(error):
                    self._say_how_to_go_on(sent)
                elif error.status_code in _ENDED:
                    self._memory.forget()
                raise
            except (_ChangedError, FileNotFoundError):
                self._fail_as_changed()
        return self._complete(sent)

    def _fail_as_changed(self) -> NoReturn:
        self._memory.forget()
        fail(f"{self._file} was changed during its upload: run the command again.")

    def _complete(self, sent: Sent) -> str:
        if not self._memory.is_same_file():
            self._fail_as_changed()
        digest = _md5(self._file)
        if not self._memory.is_same_file():
            self._fail_as_changed()
        part_ids = [sent.parts[number] for number in sorted(sent.parts)]
        try:
            upload = self._client.uploads.complete(sent.upload_id, part_ids=part_ids, md5=digest)
        except APIStatusError as error:
            if error.status_code in (400, 413, 415, *_ENDED):
                self._memory.forget()
            raise
        if upload.file is None:
            self._memory.forget()
            fail("The file of this upload was deleted: run the command again.")
        return upload.file.id

    async def _send_missing(self, sent: Sent) -> None:
        count = math.ceil(self._memory.size / sent.part_bytes)
        missing = (number for number in range(count) if number not in sent.parts)
        client = AsyncOpenAI(
            base_url=self._client.base_url, api_key=self._client.api_key, max_retries=0
        )
        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(PARALLEL):
                        group.create_task(self._send_each(client, sent, missing))
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None

    async def _send_each(self, client: AsyncOpenAI, sent: Sent, missing: Iterator[int]) -> None:
        for number in missing:
            sent.parts[number] = await self._send(client, sent, number)
            self._memory.save(sent)

    async def _send(self, client: AsyncOpenAI, sent: Sent, number: int) -> str:
        start = number * sent.part_bytes
        length = min(sent.part_bytes, self._memory.size - start)
        for attempt in range(_RETRIES + 1):
            with _Slice(self._file, start, length, self._progress) as data:
                try:
                    # The client takes any io.IOBase, though its types allow fewer.
                    body: Any = data
                    return (await client.uploads.parts.create(sent.upload_id, data=body)).id
                except (APIConnectionError, APIStatusError) as error:
                    data.seek(0)
                    if attempt == _RETRIES or not _is_temporary(error):
                        raise
                    delay = _delay(attempt, error)
            await asyncio.sleep(delay)
        raise AssertionError

    def _bytes_sent(self, sent: Sent) -> int:
        starts = (number * sent.part_bytes for number in sent.parts)
        return sum(min(sent.part_bytes, self._memory.size - start) for start in starts)

    def _say_how_to_go_on(self, sent: Sent) -> None:
        done, size = self._bytes_sent(sent), self._memory.size
        until = time.strftime("%H:%M UTC", time.gmtime(sent.expires_at))
        self._progress.note(
            f"Interrupted: {done / 1e6:.0f} of {size / 1e6:.0f} MB are uploaded. Run the same "
            f"command again before {until} to go on from there."
        )


class _Slice(io.RawIOBase):
    """A part of a file, read while it is sent; `progress` counts its bytes once."""

    def __init__(self, file: Path, start: int, length: int, progress: UploadProgress) -> None:
        self._file = file.open("rb")
        self._start = start
        self._length = length
        self._at = 0
        self._progress = progress

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence] + offset
        self._progress.add(at - self._at)
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._length - self._at]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view)
        if view and not count:
            # A body that is shorter than announced would fail somewhere inside the client.
            raise _ChangedError
        self._at += count
        self._progress.add(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _is_temporary(error: APIConnectionError | APIStatusError) -> bool:
    if isinstance(error, APIConnectionError):
        return True
    return error.status_code >= 500 or error.status_code in _TEMPORARY


def _delay(attempt: int, error: APIConnectionError | APIStatusError) -> float:
    """Return the seconds before the next attempt, at least those that the server names."""
    named = (
        error.response.headers.get("retry-after", "") if isinstance(error, APIStatusError) else ""
    )
    delay = min(0.5 * 2.0**attempt, _MAX_DELAY)
    return max(delay, float(named)) if named.isdecimal() else delay


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
