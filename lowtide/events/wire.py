"""Parsing CloudEvents from HTTP, as strictly as Knative's ingress.

Source: CloudEvents 1.0 and its HTTP binding; cloudevents/sdk-go v2, `event_unmarshal.go`,
`eventcontext_v1.go` and `types/value.go`, which the ingress of Knative's broker validates with.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


_VERSIONS: Final = ("1.0", "0.3")
_REQUIRED: Final = ("id", "source", "type")
_NAME: Final = re.compile(r"[a-z0-9]+")
# Control characters and lone surrogates cannot be forwarded in a header.
_UNSENDABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE: Final = re.compile(rf'{_WORD}/{_WORD}(\s*;\s*({_WORD}=({_WORD}|"([^"\\]|\\.)*"))?)*')
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_LARGEST_INTEGER: Final = 2**31 - 1
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MalformedEventError(ValueError):
    """A request that is no valid CloudEvent; retrying it cannot help."""


@dataclass(frozen=True, slots=True)
class WireEvent:
    """An event: its attributes as text, without `datacontenttype`, and its data."""

    attributes: Mapping[str, str]
    content_type: str | None
    data: bytes

    def headers(self) -> dict[str, str]:
        """Return the headers of a request with the event in binary mode."""
        headers = {f"ce-{name}": value for name, value in self.attributes.items()}
        return (
            headers if self.content_type is None else headers | {"content-type": self.content_type}
        )


def read_event(headers: Mapping[str, str], body: bytes) -> WireEvent:
    """Parse the event of a request; raises MalformedEventError."""
    fields = {name.lower(): value for name, value in headers.items()}
    content_type = fields.get("content-type", "").strip()
    media = content_type.partition(";")[0].strip().lower()
    if media == "application/cloudevents+json":
        return _validate(_read_structured(body))
    if media.startswith("application/cloudevents"):
        raise MalformedEventError(f"content type {media} is not supported")
    attributes = {
        name.removeprefix("ce-"): value for name, value in fields.items() if name.startswith("ce-")
    }
    return _validate(WireEvent(attributes, content_type or None, body))


def _read_structured(body: bytes) -> WireEvent:
    try:
        members = _decode_object(body)
        data, encoded = members.pop("data", None), members.pop("data_base64", None)
        attributes = {name.lower(): _as_text(name, raw) for name, raw in members.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEventError(f"not JSON: {error}") from error
    present = {name: value for name, value in attributes.items() if value is not None}
    content_type = present.pop("datacontenttype", None)
    # Version 0.3 marks base64 with this attribute, which version 1.0 does not have.
    is_base64 = present.pop("datacontentencoding", None) == "base64"
    if encoded is not None or (is_base64 and data is not None):
        return WireEvent(present, content_type, _from_base64(encoded or data))
    if data is None:
        return WireEvent(present, content_type, b"")
    if not _is_json(content_type):
        return WireEvent(present, content_type, _text_of("data", data).encode())
    return WireEvent(present, content_type or "application/json", bytes(data))


def _as_text(name: str, raw: msgspec.Raw) -> str | None:
    """Return an attribute's value as in an HTTP header; None for null."""
    value = msgspec.json.decode(raw)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and value == int(value) and abs(value) <= _LARGEST_INTEGER:
        return str(int(value))
    raise MalformedEventError(f"attribute {name!r} must be a string, a boolean or an integer")


def _text_of(name: str, raw: msgspec.Raw | None) -> str:
    value = None if raw is None else msgspec.json.decode(raw)
    if not isinstance(value, str):
        raise MalformedEventError(f"{name} must be a string")
    return value


def _from_base64(raw: msgspec.Raw | None) -> bytes:
    try:
        return base64.b64decode(_text_of("data", raw), validate=True)
    except binascii.Error as error:
        raise MalformedEventError(f"data is not base64: {error}") from error


def _is_json(content_type: str | None) -> bool:
    media = (content_type or "application/json").partition(";")[0].strip().lower()
    return media in {"application/json", "text/json"} or media.endswith("+json")


def _validate(event: WireEvent) -> WireEvent:
    version = event.attributes.get("specversion", "")
    if version not in _VERSIONS:
        raise MalformedEventError(
            f"specversion {version[:20]!r} is not one of {', '.join(_VERSIONS)}"
        )
    for name in _REQUIRED:
        if not event.attributes.get(name, "").strip():
            raise MalformedEventError(f"attribute {name!r} is missing")
    for name, value in event.attributes.items():
        if not _NAME.fullmatch(name):
            raise MalformedEventError(f"attribute name {name[:40]!r} must consist of a-z and 0-9")
        if _UNSENDABLE.search(value):
            raise MalformedEventError(
                f"attribute {name!r} has characters that headers cannot carry"
            )
    if "subject" in event.attributes and not event.attributes["subject"].strip():
        raise MalformedEventError("attribute 'subject' is empty")
    time = event.attributes.get("time")
    if time is not None and not _TIME.fullmatch(time):
        raise MalformedEventError("attribute 'time' is not an RFC 3339 timestamp")
    if event.content_type is not None and not _MEDIA_TYPE.fullmatch(event.content_type):
        raise MalformedEventError("the content type is not a valid media type")
    return event
