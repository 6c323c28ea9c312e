"""The lines of an input file: what one must look like, and everything that can be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/moderations",
)
MAX_CUSTOM_ID: Final = 512
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on an input file."""

    max_lines: int = 50_000
    max_line_bytes: int = 4 * 1024 * 1024
    max_problems: int = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file; `line` counts physical lines from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class InputLine:
    """One request of a file. `number` counts requests from 1; the rest is where its bytes lie."""

    number: int
    custom_id: str
    offset: int
    length: int


class _Head(msgspec.Struct):
    custom_id: object = msgspec.UNSET
    method: object = msgspec.UNSET
    url: object = msgspec.UNSET
    body: msgspec.Raw = msgspec.Raw()


class _Body(msgspec.Struct):
    model: object = msgspec.UNSET


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_body = msgspec.json.Decoder(_Body).decode


def body_of(line: bytes) -> bytes:
    """Return the exact bytes of the body of a validated line."""
    return bytes(_decode_head(line).body)


@dataclass(slots=True)
class LineReader:
    """Turns chunks of a file into its requests, and collects what is wrong with it.

    Feed it the file once, in order, in chunks of any size; memory is bounded by one line and
    `max_lines` custom_ids. It goes on after a bad line, so that a user sees every problem at once.

    `endpoint` is what each line's url must be; None takes the first line's.
    """

    limits: Limits = field(default_factory=Limits)
    endpoint: str | None = None
    endpoints: tuple[str, ...] = ENDPOINTS
    problems: list[Problem] = field(default_factory=list)
    requests: int = 0
    model: str | None = None
    _seen: dict[str, int] = field(default_factory=dict)
    _rest: bytes = b""
    _offset: int = 0
    _physical: int = 0
    _overlong: bool = False

    def feed(self, chunk: bytes) -> Iterator[InputLine]:
        """Yield the valid requests that end in this chunk."""
        data = self._rest + chunk if self._rest else chunk
        pieces = data.split(b"\n")
        self._rest = pieces.pop()
        for piece in pieces:
            yield from self._line(piece, len(piece) + 1)
        if len(self._rest) > self.limits.max_line_bytes:
            # The rest of an over-long line is dropped unread, so that memory stays bounded.
            self._offset += len(self._rest)
            self._rest = b""
            self._overlong = True

    def finish(self) -> Iterator[InputLine]:
        """Yield the last request of a file without a last newline, and judge the whole file."""
        if self._rest or self._overlong:
            yield from self._line(self._rest, len(self._rest))
            self._rest = b""
        if self._physical == 0 or (self.requests == 0 and not self.problems):
            self._report("empty_file", "The file has no requests: add one JSON object a line.")
        elif self.requests > self.limits.max_lines:
            self._report(
                "too_many_requests",
                f"The file has {self.requests} requests; at most {self.limits.max_lines} are "
                "allowed: split it into several files.",
            )

    def _line(self, piece: bytes, size: int) -> Iterator[InputLine]:
        self._physical += 1
        start, self._offset = self._offset, self._offset + size
        if self._overlong or len(piece) > self.limits.max_line_bytes:
            self._overlong = False
            self.requests += 1
            self._report(
                "line_too_long",
                f"The line is longer than {self.limits.max_line_bytes} bytes: shorten the request.",
                line=self._physical,
            )
            return
        if self._physical == 1 and piece.startswith(_BOM):
            piece, start = piece[3:], start + 3
        stripped = piece.strip(b" \t\r")
        if not stripped:
            return
        self.requests += 1
        if self.requests > self.limits.max_lines:
            # The file is refused anyway: these are counted, and neither checked nor remembered.
            return
        custom_id = self._check(stripped)
        if custom_id is not None:
            start += piece.index(stripped[:1])
            yield InputLine(self.requests, custom_id, start, len(stripped))

    def _check(self, line: bytes) -> str | None:
        """Return the custom_id of a line without problems."""
        try:
            line.decode()
            head = _decode_head(line)
        except UnicodeDecodeError as error:
            self._report(
                "invalid_utf8",
                f"The line is not valid UTF-8 at byte {error.start + 1}: save the file as UTF-8.",
                line=self._physical,
            )
            return None
        except (msgspec.DecodeError, RecursionError) as error:
            self._report(
                "invalid_json_line",
                f"The line is not a JSON object ({_reason(error)}): write one object a line.",
                line=self._physical,
            )
            return None
        found = len(self.problems)
        custom_id = self._custom_id(head.custom_id)
        self._method_and_url(head)
        self._body(head.body)
        return custom_id if len(self.problems) == found else None

    def _custom_id(self, value: object) -> str | None:
        if value is msgspec.UNSET or value is None or value == "":
            self._on_line(
                "missing_custom_id", "custom_id is missing: give each line its own.", "custom_id"
            )
        elif not isinstance(value, str):
            self._on_line("invalid_custom_id", "custom_id must be a string.", "custom_id")
        elif len(value) > MAX_CUSTOM_ID:
            self._on_line(
                "invalid_custom_id",
                f"custom_id has {len(value)} characters; at most {MAX_CUSTOM_ID} are allowed.",
                "custom_id",
            )
        elif "\x00" in value:
            self._on_line("invalid_custom_id", "custom_id must not contain U+0000.", "custom_id")
        elif (first := self._seen.setdefault(value, self._physical)) != self._physical:
            self._on_line(
                "duplicate_custom_id",
                f"custom_id {value!r} is already used on line {first}: make each one unique.",
                "custom_id",
            )
        else:
            return value
        return None

    def _method_and_url(self, head: _Head) -> None:
        if head.method != "POST":
            self._on_line("invalid_method", "method must be POST.", "method")
        if self.endpoint is None and isinstance(head.url, str) and head.url in self.endpoints:
            self.endpoint = head.url
        if head.url != self.endpoint or self.endpoint is None:
            expected = self.endpoint or f"one of {', '.join(self.endpoints)}"
            self._on_line("invalid_url", f"url must be {expected}, as the batch's endpoint.", "url")

    def _body(self, raw: msgspec.Raw) -> None:
        if not raw:
            self._on_line("missing_body", "body is missing: put the request's JSON there.", "body")
            return
        try:
            model = _decode_body(raw).model
        except msgspec.DecodeError:
            self._on_line("invalid_body", "body must be a JSON object.", "body")
            return
        if not isinstance(model, str) or not model or "\x00" in model:
            self._on_line("missing_model", "body.model must name a model.", "body.model")
        elif self.model is None:
            self.model = model
        elif model != self.model:
            self._on_line(
                "mismatched_model",
                f"body.model is {model!r}, but the file began with {self.model!r}: "
                "put each model into its own file.",
                "body.model",
            )

    def _on_line(self, code: str, message: str, param: str) -> None:
        self._report(code, message, param=param, line=self._physical)

    def _report(self, code: str, message: str, **where: Any) -> None:
        if len(self.problems) < self.limits.max_problems:
            self.problems.append(Problem(code, message, **where))
        elif not where:
            self.problems[-1] = Problem(code, message)


def read_lines(chunks: Iterable[bytes], reader: LineReader) -> Iterator[InputLine]:
    """Yield every valid request of a file; `reader` then holds its problems."""
    for chunk in chunks:
        yield from reader.feed(chunk)
    yield from reader.finish()


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)
