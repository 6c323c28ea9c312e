"""The requests of an input file, with their positions, and the problems of the file."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec

from lowtide.files.checks import MAX_MODELS, LineChecks, repeated_id
from lowtide.files.prefixes import Prefixes
from lowtide.files.syntax import HALF, decode_body, without_halves

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lowtide.files.custom_ids import Repeated


ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/moderations",
)
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on an input file, and whether its requests are ordered by prefix."""

    max_lines: int = 50_000
    max_line_bytes: int = 32 * 1024 * 1024
    max_problems: int = 100
    max_models: int = MAX_MODELS
    prefix_order: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a file; `line` counts physical lines from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class InputLine(msgspec.Struct, frozen=True, gc=False):
    """A request of a file; `number` counts from 1, the rest locates and verifies its bytes.

    `model` is the number of its model among those of the file, from 0, and `prefix` has the earlier
    requests whose prompts begin like its own, see `files.prefixes`.
    """

    number: int
    custom_id: str
    offset: int
    length: int
    checksum: int | None = None
    model: int = 0
    prefix: tuple[int, ...] = ()


ModelCounts = tuple[tuple[str | None, int], ...]
"""The models of a file in the order of their first requests, each with its number of requests."""


class UnsendableBody(ValueError):
    """A request body with a lone surrogate, which cannot be sent to an engine."""


def body_of(line: bytes) -> bytes | None:
    """Return the exact bytes of a validated line's body; None for any other bytes.

    Raises UnsendableBody for a lone surrogate, which fails the request, not the file.
    """
    try:
        return bytes(decode_body(line).body) or None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if _has_halves(line):
            raise UnsendableBody(f"{HALF}; write complete characters") from None
        return None


def _has_halves(line: bytes) -> bool:
    try:
        return without_halves(line) is not None
    except (UnicodeDecodeError, RecursionError):
        return False


NO_BYTES: Final = -(2**31)
"""The checksum before the first piece."""


def checksum_of(piece: bytes, before: int = NO_BYTES) -> int:
    """Return the checksum of a request's bytes, a signed 32-bit integer.

    For a request in pieces, `before` is the checksum of the preceding pieces. CRC-32 detects
    accidents: damage, or a wrong object. It costs a fortieth of the time to split a line, BLAKE2 a
    tenth; neither protects against an attacker with write access to the object store.
    """
    return crc32(piece, before - NO_BYTES) + NO_BYTES


class LineReader:
    """Split chunks of a file into requests, and collect its problems.

    Feed it the file once, in order, in chunks of any size; memory is bounded by a chunk, one line
    and some bytes per custom_id. It continues after an invalid line, so that users see all problems
    at once; after `max_lines` requests or `max_problems` problems it only counts requests.

    In a large file, repeated custom_ids are reported only by `report_repeated`, after the end.

    `endpoint` is the url that every request must have; None takes the first supported one.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        endpoint: str | None = None,
        endpoints: tuple[str, ...] = ENDPOINTS,
    ) -> None:
        self.limits = limits or Limits()
        self.problems: list[Problem] = []
        self.requests = 0
        self._checks = LineChecks(endpoint, endpoints, self.limits.max_models)
        self._counts: list[int] = []
        self._prefixes = Prefixes() if self.limits.prefix_order else None
        self._buffer: list[bytes] = []
        self._buffer_bytes = 0
        self._overlong = False
        self._line_number = 0
        self._offset = 0

    @property
    def endpoint(self) -> str | None:
        """The url that requests must have; None before the first supported one."""
        return self._checks.endpoint

    @property
    def model(self) -> str | None:
        """The model of the file; None until a request names one, or if it has several."""
        return next(iter(self._checks.models)) if len(self._checks.models) == 1 else None

    @property
    def models(self) -> ModelCounts | None:
        """The models of a file that has several, each with its number of valid requests."""
        if len(self._checks.models) < 2:
            return None
        return tuple(zip(self._checks.models, self._counts, strict=False))

    @property
    def model_counts(self) -> ModelCounts:
        """The models of the file, be it one or several, each with its number of requests."""
        return self.models or ((self.model, self.requests),)

    @property
    def suspects(self) -> frozenset[int]:
        """Fingerprints of custom_ids that may repeat; empty for all but the largest files."""
        return self._checks.custom_ids.suspects()

    def report_repeated(self, requests: Iterable[Repeated], content: Iterable[bytes]) -> None:
        """Report repeated custom_ids of a large file, whose bytes are read to count its lines."""
        found = list(islice(requests, self.limits.max_problems))
        starts = {row.start for each in found for row in each}
        lines = _lines_at(sorted(starts), content)
        for each in found:
            fault = repeated_id(each.again.custom_id, lines[each.first.start])
            line = lines[each.again.start]
            self._report(fault.code, fault.message, param=fault.param, line=line)

    def feed(self, chunk: bytes) -> list[InputLine]:
        """Parse a chunk; return the valid requests that end in it."""
        lines = chunk.split(b"\n")
        tail = lines.pop()
        if lines and self._buffer:
            lines[0] = self._flush(lines[0])
        requests: list[InputLine] = []
        for position, line in enumerate(lines):
            if not line and not self._overlong:
                self._line_number += 1
                self._offset += 1
            elif self._is_full():
                self._count(lines[position:])
                break
            else:
                self._parse_line(line, requests)
        self._push(tail)
        self._checks.compact()
        return requests

    def finish(self) -> list[InputLine]:
        """Return a last request without a newline, and check the file as a whole."""
        requests: list[InputLine] = []
        if self._buffer or self._overlong:
            line = self._flush(b"")
            if self._is_full():
                self._count([line])
            else:
                self._parse_line(line, requests)
        if self.requests == 0:
            self._report("empty_file", "The file has no requests: add one JSON object per line.")
        elif self.requests > self.limits.max_lines:
            self._report(
                "too_many_requests",
                f"The file has {self.requests} requests; at most {self.limits.max_lines} are "
                "allowed: split it into several files.",
            )
        return requests

    def _push(self, tail: bytes) -> None:
        """Keep the start of an incomplete line; drop that of an over-long one, but remember it."""
        if tail:
            self._buffer.append(tail)
            self._buffer_bytes += len(tail)
        if self._overlong or self._buffer_bytes > self.limits.max_line_bytes:
            self._offset += len(self._flush(b""))
            self._overlong = True

    def _flush(self, end: bytes) -> bytes:
        """Return a whole line: its start that was kept, and its end."""
        line = b"".join((*self._buffer, end))
        self._buffer.clear()
        self._buffer_bytes = 0
        return line

    def _is_full(self) -> bool:
        """Return True if only the number of requests still matters."""
        limits = self.limits
        return self.requests >= limits.max_lines or len(self.problems) >= limits.max_problems

    def _count(self, lines: list[bytes]) -> None:
        if self._overlong:
            # Only the end of the line is left, which may be blank.
            lines[0] = b"{}"
            self._overlong = False
        longest = self.limits.max_line_bytes
        self.requests += sum(len(line) > longest or line.strip(_SPACE) != b"" for line in lines)

    def _parse_line(self, line: bytes, requests: list[InputLine]) -> None:
        """Check one physical line."""
        self._line_number += 1
        start = self._offset
        self._offset += len(line) + 1
        if self._overlong or len(line) > self.limits.max_line_bytes:
            self._overlong = False
            self.requests += 1
            self._report(
                "line_too_long",
                f"The line is longer than {self.limits.max_line_bytes} bytes: shorten the request.",
                line=self._line_number,
            )
            return
        if self._line_number == 1 and line.startswith(_BOM):
            line, start = line[3:], start + 3
        request = line.strip(_SPACE)
        if not request:
            return
        if len(request) != len(line):
            start += len(line) - len(line.lstrip(_SPACE))
        self.requests += 1
        custom_id = self._checks.accept(request, self._line_number) or self._examine(request)
        if custom_id is not None:
            number, model = self.requests, self._checks.number
            prefix = self._prefixes.find(self.endpoint, request, number) if self._prefixes else ()
            checksum = checksum_of(request)
            requests.append(
                InputLine(number, custom_id, start, len(request), checksum, model, prefix)
            )
            self._count_model(model)

    def _count_model(self, model: int) -> None:
        while model >= len(self._counts):
            self._counts.append(0)
        self._counts[model] += 1

    def _examine(self, request: bytes) -> str | None:
        """Return the custom_id of a valid but unusual request, or report its faults."""
        custom_id, faults = self._checks.examine(request, self._line_number)
        for fault in faults:
            self._report(fault.code, fault.message, param=fault.param, line=self._line_number)
        return None if faults else custom_id

    def _report(
        self, code: str, message: str, *, param: str | None = None, line: int | None = None
    ) -> None:
        if len(self.problems) < self.limits.max_problems:
            self.problems.append(Problem(code, message, param, line))
        elif line is None:
            self.problems[-1] = Problem(code, message)


def _lines_at(starts: Sequence[int], content: Iterable[bytes]) -> dict[int, int]:
    """Return the line, from 1, in which each of these bytes is."""
    lines: dict[int, int] = {}
    waiting = deque(starts)
    offset, line = 0, 1
    for chunk in content:
        position = 0
        while waiting and waiting[0] < offset + len(chunk):
            start = waiting.popleft()
            line += chunk.count(b"\n", position, start - offset)
            position = start - offset
            lines[start] = line
        if not waiting:
            break
        line += chunk.count(b"\n", position)
        offset += len(chunk)
    return lines


def read_lines(chunks: Iterable[bytes], reader: LineReader) -> Iterator[InputLine]:
    """Yield the valid requests of a file; `reader` collects its problems."""
    for chunk in chunks:
        yield from reader.feed(chunk)
    yield from reader.finish()
