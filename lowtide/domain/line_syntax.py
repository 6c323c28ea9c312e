"""What a line of an input file is made of, and in plain words why one is no JSON object."""

from __future__ import annotations

import json
import re
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_NESTING: Final = 128
"""Levels of `{` and `[`. Far below what any Python stack allows, so that every process agrees, and
the default limit of serde_json, which several engines parse with."""

_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STEPS: Final = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"{[}]"))


class Plain(msgspec.Struct, gc=False):
    """A line as it should be; decoding it fails for anything of another type."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class Fields(msgspec.Struct, gc=False):
    """The fields of any object, as JSON; empty where there is none. The last of several counts."""

    custom_id: msgspec.Raw = msgspec.Raw()
    method: msgspec.Raw = msgspec.Raw()
    url: msgspec.Raw = msgspec.Raw()
    body: msgspec.Raw = msgspec.Raw()


class _Model(msgspec.Struct, gc=False):
    model: str


class _AnyModel(msgspec.Struct, gc=False):
    model: msgspec.Raw = msgspec.Raw()


class _BodyOnly(msgspec.Struct, gc=False):
    body: msgspec.Raw = msgspec.Raw()


decode_plain = msgspec.json.Decoder(Plain).decode
decode_fields = msgspec.json.Decoder(Fields).decode
decode_model = msgspec.json.Decoder(_Model).decode
decode_any_model = msgspec.json.Decoder(_AnyModel).decode
decode_body = msgspec.json.Decoder(_BodyOnly).decode
_decode_text = msgspec.json.Decoder(str).decode


def is_shallow(text: bytes) -> bool:
    """Whether JSON, or what pretends to be, is nested at most MAX_NESTING levels deep."""
    if text.count(b"{") + text.count(b"[") <= MAX_NESTING:
        return True
    steps = array("b", _STRINGS.sub(b"", text).translate(_STEPS, _NOT_BRACKETS))
    return max(accumulate(steps), default=0) <= MAX_NESTING


def text_of(value: msgspec.Raw) -> str | None:
    """Return a JSON value that is a string; None for any other."""
    return _decode_text(value) if bytes(value).startswith(b'"') else None


def repeated_fields(line: bytes, body: bytes) -> Sequence[str]:
    """Return which fields an object names more than once; `body` is the value of its last body."""
    # Cut out, as it may be large; should the same bytes come earlier, it is the same names still.
    frame = line.replace(body, b"0", 1) if body.startswith(b"{") else line
    pairs: list[tuple[str, Any]] = json.loads(
        frame.decode(), object_pairs_hook=list, parse_int=str, parse_float=str
    )
    names = [name for name, _ in pairs]
    return [name for name in Fields.__struct_fields__ if names.count(name) > 1]


def syntax_fault(line: bytes) -> str:
    """Return why a line of valid UTF-8, not nested too deeply, is no JSON object."""
    try:
        # Read as floating point: integers of thousands of digits would be refused, or take long.
        value = json.loads(line.decode(), parse_constant=_refuse, parse_int=float)
    except json.JSONDecodeError as error:
        return f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
    except _NoNumber as error:
        return f"{error} is no JSON number"
    if not isinstance(value, dict):
        return f"it is {_KINDS[type(value)]}"
    # Here the standard library takes what msgspec and UTF-8 do not.
    return r"an escape like \ud800 stands without its other half"


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
