"""The JSON syntax of input lines, and readable reasons for syntax errors."""

from __future__ import annotations

import json
import re
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


MAX_NESTING: Final = 128
"""Max levels of `{` and `[`: far below any Python stack limit, so that all processes agree, and the
default limit of serde_json, with which several engines parse."""

_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
# A surrogate pair or, as group 1, a lone surrogate, after an even number of backslashes.
_SURROGATES: Final = re.compile(
    rb"(?<!\\)(?:\\\\)*+(?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)
_WHOLE: Final = re.compile(rb'(?:[^"]|"(?:[^"\\]++|\\.)*+")++', re.DOTALL)
_PART_BYTES: Final = 1 << 16
_LONG: Final = 1 << 20
_STEPS: Final = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"{[}]"))


class Plain(msgspec.Struct, gc=False):
    """A well-formed line; decoding fails for a field of another type."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class Fields(msgspec.Struct, gc=False):
    """The fields of any object as JSON, empty if missing; the last one of repeated fields."""

    custom_id: msgspec.Raw = msgspec.Raw()
    method: msgspec.Raw = msgspec.Raw()
    url: msgspec.Raw = msgspec.Raw()
    body: msgspec.Raw = msgspec.Raw()


class _Model(msgspec.Struct, gc=False):
    """A well-formed body; decoding fails for a field of another type."""

    model: str | None = None
    stream: bool | None = None


class _AnyModel(msgspec.Struct, gc=False):
    model: msgspec.Raw = msgspec.Raw()
    stream: msgspec.Raw = msgspec.Raw()


class _BodyOnly(msgspec.Struct, gc=False):
    body: msgspec.Raw = msgspec.Raw()


decode_plain = msgspec.json.Decoder(Plain).decode
decode_fields = msgspec.json.Decoder(Fields).decode
decode_model = msgspec.json.Decoder(_Model).decode
decode_any_model = msgspec.json.Decoder(_AnyModel).decode
decode_body = msgspec.json.Decoder(_BodyOnly).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


def check_utf8(text: bytes) -> None:
    """Raise UnicodeDecodeError for invalid UTF-8."""
    if text.isascii():
        return
    # In parts: with one wide character, a string takes four bytes per character.
    start = 0
    while start < len(text):
        end = min(start + _PART_BYTES, len(text))
        while end < len(text) and end > start and text[end] & 0xC0 == 0x80:
            end -= 1
        try:
            text[start:end].decode()
        except UnicodeDecodeError as error:
            error.start += start
            raise
        start = end


def is_shallow(text: bytes) -> bool:
    """Return True if JSON, valid or not, is nested at most MAX_NESTING levels deep."""
    if text.count(b"{") + text.count(b"[") <= MAX_NESTING:
        return True
    depth = start = 0
    while start < len(text):
        # In parts, as every string that is cut out becomes a temporary object.
        part = _WHOLE.match(text, start, start + _PART_BYTES) or _STRINGS.match(text, start)
        if part is None:
            return False
        bare = _STRINGS.sub(b"", part[0])
        depths = list(accumulate(array("b", bare.translate(_STEPS, _NOT_BRACKETS)), initial=depth))
        if max(depths) > MAX_NESTING:
            return False
        depth, start = depths[-1], part.end()
    return True


def text_of(value: msgspec.Raw) -> str | None:
    """Decode a JSON string; return None for any other value."""
    return _decode_text(value) if bytes(value).startswith(b'"') else None


def renamed(body: bytes, names: Mapping[str, str]) -> bytes:
    """Return a request's body with the model that `names` has for its own; no other value changes.

    >>> renamed(b'{"model": "gpt-4", "n": 1.0}', {"gpt-4": "llama"})
    b'{"model":"llama","n":1.0}'
    """
    model = text_of(decode_any_model(body).model)
    if model is None or model not in names:
        return body
    fields = _decode_object(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(names[model]))
    return msgspec.json.encode(fields)


def without_halves(line: bytes) -> bytes | None:
    r"""Replace lone surrogates, like `\ud800`, with other escapes of the same length.

    Return None if there are none, or if one is in a field that identifies the request: custom_id,
    method, url or model.
    """
    candidate = _replace_surrogates(line, rb"\ufffd")
    if candidate is None:
        return None
    try:
        identity = _identity(candidate)
        if not any(rb"\ufffd" in value for value in identity):
            return candidate
        alternative = _replace_surrogates(line, rb"\ufffc")
        return candidate if alternative is not None and _identity(alternative) == identity else None
    except msgspec.DecodeError:
        return None


def _replace_surrogates(line: bytes, replacement: bytes) -> bytes | None:
    """Replace each lone surrogate with `replacement`; return None if there is none."""
    result: bytearray | None = None
    for match in _SURROGATES.finditer(line):
        if match[1] is not None:
            result = result or bytearray(line)
            result[match.start(1) : match.end(1)] = replacement
    return None if result is None else bytes(result)


def _identity(line: bytes) -> tuple[bytes, ...]:
    fields = decode_fields(line)
    body = bytes(fields.body)
    model = decode_any_model(body).model if body.startswith(b"{") else b""
    return bytes(fields.custom_id), bytes(fields.method), bytes(fields.url), bytes(model)


def frame_of(line: bytes, body: bytes) -> bytes:
    """Return a line without its body, which is the value of its last field of that name."""
    # If the same bytes occur earlier, the field names are still the same.
    return line.replace(body, b"0", 1) if body.startswith(b"{") else line


def repeated_fields(frame: bytes) -> Sequence[str]:
    """Return the fields that an object names more than once."""
    pairs: list[tuple[str, Any]] = json.loads(
        frame.decode(), object_pairs_hook=list, parse_int=str, parse_float=str
    )
    names = [name for name, _ in pairs]
    return [name for name in Fields.__struct_fields__ if names.count(name) > 1]


def syntax_fault(line: bytes, error: msgspec.DecodeError) -> str:
    """Return the reason why a line of valid UTF-8, not nested too deeply, is no JSON object.

    For a long line it is the terse text of `error`, as parsing the line again takes memory.
    """
    if len(line) > _LONG:
        return str(error)
    try:
        # Integers are parsed as floats: thousands of digits would be rejected or slow.
        value = json.loads(line.decode(), parse_constant=_refuse, parse_int=float)
    except json.JSONDecodeError as cause:
        return f"{cause.msg.removesuffix(' at')} at character {cause.pos + 1}"
    except _NoNumber as cause:
        return f"{cause} is not a JSON number"
    if not isinstance(value, dict):
        return f"it is {_KINDS[type(value)]}"
    # The standard library accepts lone surrogates, which msgspec and UTF-8 do not.
    return HALF


HALF: Final = r"unpaired surrogate escape, such as \ud800"


_KINDS: Final[dict[type, str]] = {
    list: "an array",
    str: "a string",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


class _NoNumber(ValueError): ...


def _refuse(constant: str) -> NoReturn:
    raise _NoNumber(constant)
