"""The validation of the requests of an input file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from lowtide.files.custom_ids import CustomIds
from lowtide.files.syntax import (
    MAX_NESTING,
    check_utf8,
    decode_any_model,
    decode_fields,
    decode_model,
    decode_plain,
    frame_of,
    is_shallow,
    repeated_fields,
    syntax_fault,
    text_of,
    without_halves,
)

if TYPE_CHECKING:
    from lowtide.files.syntax import Fields


MAX_CUSTOM_ID: Final = 512
MAX_MODEL: Final = 512
MAX_MODELS: Final = 1000
"""The most models of one file."""
_MODEL_OPTIONAL: Final = frozenset({"/v1/moderations"})
_NO_STREAM: Final = frozenset({b"", b"null", b"false"})
_ABSENT: Final = frozenset({b"", b"null", b'""'})
_SHORT_ID: Final = 64
# Bytes outside the body are parsed into objects, which take many times as much memory.
_MAX_FRAME: Final = 1 << 20
# Four keys and three strings: a line with just these quotes outside its body repeats no field.
_PLAIN_QUOTES: Final = 14


class Fault(NamedTuple):
    """A fault of a line."""

    code: str
    message: str
    param: str | None = None


class LineChecks:
    """Check the requests of one file, in order, against the rules and against each other.

    `endpoint` is the url that every request must have; None takes the first supported one. `models`
    are those of the requests, numbered in the order of their first ones; None is a request that may
    omit it. At most `max_models` are allowed.
    """

    def __init__(
        self, endpoint: str | None, endpoints: tuple[str, ...], max_models: int = MAX_MODELS
    ) -> None:
        self.endpoint = endpoint
        self.models: dict[str | None, int] = {}
        self.number = 0
        """The number of the model of the last accepted request."""
        self._max_models = max_models
        self._endpoints = endpoints
        self.custom_ids = CustomIds()
        self._first_line = self.custom_ids.short

    def compact(self) -> None:
        """Bound the memory that custom_ids take, between two chunks of the file."""
        if self.custom_ids.compact():
            self._first_line = self.custom_ids.short

    def accept(self, line: bytes, number: int) -> str | None:
        """Return the custom_id of a valid line in the usual form; None leaves it to `examine`.

        Almost every line ends here, so this does only the necessary checks.
        """
        try:
            check_utf8(line)
            request = decode_plain(line)
            body = request.body
            options = decode_model(body)
            model_number = self.models.get(options.model)
            if model_number is None or options.stream:
                return None
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
            return None
        custom_id = request.custom_id
        if (
            request.url == self.endpoint
            and request.method == "POST"
            and 0 < len(custom_id) <= _SHORT_ID
            and "\x00" not in custom_id
            and line.endswith(body, 0, -1)
            and line.count(b'"', 0, -1 - len(memoryview(body))) == _PLAIN_QUOTES
            and is_shallow(line)
            and self._first_line(custom_id, number) == number
        ):
            self.number = model_number
            return custom_id
        return None

    def examine(self, line: bytes, number: int) -> tuple[str | None, list[Fault]]:
        """Return the custom_id of any line, if it has one, and all faults of the line."""
        try:
            check_utf8(line)
            if not is_shallow(line):
                text = f"The line is nested deeper than {MAX_NESTING} levels: flatten the request."
                return None, [Fault("nested_too_deeply", text)]
            fields = decode_fields(line)
        except UnicodeDecodeError as error:
            text = f"The line is not valid UTF-8 at byte {error.start + 1}: save the file as UTF-8."
            return None, [Fault("invalid_utf8", text)]
        except msgspec.DecodeError as error:
            repaired = without_halves(line)
            if repaired is not None:
                # The file is accepted; only this request fails, without reaching the engine.
                return self.examine(repaired, number)
            text = f"The line is not a JSON object ({syntax_fault(line, error)}): write one object per line."
            return None, [Fault("invalid_json_line", text)]
        body = bytes(fields.body)
        frame = frame_of(line, body)
        if len(frame) > _MAX_FRAME:
            text = f"The line has over {_MAX_FRAME} bytes outside body: shorten the other fields."
            return None, [Fault("line_too_long", text)]
        faults = [
            Fault("repeated_field", f"{name} is given more than once: keep one.", name)
            for name in repeated_fields(frame)
        ]
        custom_id = text_of(fields.custom_id)
        field_faults = (
            self._custom_id(fields, custom_id, number),
            self._method(fields),
            self._url(fields),
            self._body(body),
            self._stream(body),
        )
        return custom_id, faults + [fault for fault in field_faults if fault is not None]

    def _custom_id(self, fields: Fields, value: str | None, number: int) -> Fault | None:
        if bytes(fields.custom_id) in _ABSENT:
            text = "custom_id is missing: each request needs a unique one."
            return Fault("missing_custom_id", text, "custom_id")
        if value is None:
            text = "custom_id must be a string: put it in quotes."
        elif len(value) > MAX_CUSTOM_ID:
            text = f"custom_id has {len(value)} characters; at most {MAX_CUSTOM_ID} are allowed."
        elif "\x00" in value:
            text = "custom_id must not contain U+0000."
        else:
            return self._repeated_id(value, number)
        return Fault("invalid_custom_id", text, "custom_id")

    def _repeated_id(self, custom_id: str, number: int) -> Fault | None:
        first_line = self.custom_ids.first_line(custom_id, number)
        return None if first_line == number else repeated_id(custom_id, first_line)

    @staticmethod
    def _method(fields: Fields) -> Fault | None:
        if text_of(fields.method) == "POST":
            return None
        return Fault("invalid_method", "method must be POST.", "method")

    def _url(self, fields: Fields) -> Fault | None:
        url = text_of(fields.url)
        if self.endpoint is None and url in self._endpoints:
            self.endpoint = url
        if url is not None and url == self.endpoint:
            return None
        expected = self.endpoint or f"one of {', '.join(self._endpoints)}"
        return Fault(
            "invalid_url", f"url must be {expected}: a batch has a single endpoint.", "url"
        )

    def _body(self, body: bytes) -> Fault | None:
        if not body:
            return Fault("missing_body", "body is missing: add the request's JSON object.", "body")
        if not body.startswith(b"{"):
            return Fault("invalid_body", "body must be a JSON object.", "body")
        return self._model(decode_any_model(body).model)

    def _model(self, value: msgspec.Raw) -> Fault | None:
        is_absent = bytes(value) in _ABSENT
        if is_absent and self.endpoint not in _MODEL_OPTIONAL:
            return Fault("missing_model", "body.model is missing: specify a model.", "body.model")
        model = None if is_absent else text_of(value)
        if not is_absent and (model is None or "\x00" in model or len(model) > MAX_MODEL):
            text = f"body.model must be a string of at most {MAX_MODEL} characters, without U+0000."
            return Fault("invalid_model", text, "body.model")
        if model not in self.models and len(self.models) < self._max_models:
            self.models[model] = len(self.models)
        if model in self.models:
            self.number = self.models[model]
            return None
        if self._max_models > 1:
            text = f"The file has more than {self._max_models} models: split it."
            return Fault("too_many_models", text, "body.model")
        first = next(iter(self.models))
        text = (
            f"body.model is {_describe_model(model)}, but the file's first request has "
            f"{_describe_model(first)}: use one file per model."
        )
        return Fault("mismatched_model", text, "body.model")

    @staticmethod
    def _stream(body: bytes) -> Fault | None:
        if not body.startswith(b"{") or bytes(decode_any_model(body).stream) in _NO_STREAM:
            return None
        text = "body.stream must be false or absent: batches do not support streaming."
        return Fault("stream_not_supported", text, "body.stream")


def repeated_id(custom_id: str, first_line: int) -> Fault:
    """Return the fault of a request whose custom_id an earlier line has."""
    text = f"custom_id {custom_id!r} is already used on line {first_line}: make each one unique."
    return Fault("duplicate_custom_id", text, "custom_id")


def _describe_model(model: str | None) -> str:
    return "absent" if model is None else repr(model)
