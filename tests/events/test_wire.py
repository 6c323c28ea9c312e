"""Parsing of CloudEvents over HTTP, as strict as Knative's ingress."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lowtide.events.wire import MalformedEventError, read_event

BINARY = {"ce-specversion": "1.0", "ce-type": "t", "ce-source": "/s", "ce-id": "1"}
WHOLE: dict[str, Any] = {"specversion": "1.0", "type": "t", "source": "/s", "id": "1"}
ATTRIBUTES = {"specversion": "1.0", "type": "t", "source": "/s", "id": "1"}


def _structured(event: object) -> tuple[dict[str, str], bytes]:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    return {"Content-Type": "application/cloudevents+json; charset=utf-8"}, body


@pytest.mark.parametrize(
    ("members", "attributes", "content_type", "data"),
    [
        pytest.param({}, {}, None, b"", id="no data"),
        pytest.param({"data": {"a": "ü"}}, {}, "application/json", b'{"a": "\\u00fc"}', id="JSON"),
        pytest.param({"data": None}, {}, "application/json", b"null", id="null"),
        pytest.param(
            {"data": "x", "datacontenttype": "text/plain"}, {}, "text/plain", b"x", id="text"
        ),
        pytest.param({"Extra": "x"}, {"extra": "x"}, None, b"", id="a capital letter"),
        pytest.param({"data_base64": "/w=="}, {}, None, b"\xff", id="binary"),
        pytest.param(
            {"flag": True, "count": -3, "whole": 2.0, "word": "w", "none": None},
            {"flag": "true", "count": "-3", "whole": "2", "word": "w"}, None, b"",
            id="extension attributes",
        ),
        pytest.param(
            {"time": "2026-11-26T09:00:06.123Z"}, {"time": "2026-11-26T09:00:06.123Z"}, None, b"",
            id="time",
        ),
    ],
)  # fmt: skip
def test_structured_event_is_read(
    members: dict[str, Any], attributes: dict[str, str], content_type: str | None, data: bytes
) -> None:
    event = read_event(*_structured(WHOLE | members))
    assert event.attributes == ATTRIBUTES | attributes
    assert (event.content_type, event.data) == (content_type, data)
    forwarded = read_event(event.headers(), event.data)
    assert forwarded == event, "forwarding must not change the event"


def test_binary_event_is_read() -> None:
    headers = BINARY | {"Ce-TraceParent": "00-1-2-00", "Content-Type": "application/json"}
    event = read_event(headers, b"{")
    assert event.attributes == ATTRIBUTES | {"traceparent": "00-1-2-00"}
    assert (event.content_type, event.data) == ("application/json", b"{")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({}, b"{}", id="no event"),
        pytest.param({**BINARY, "ce-specversion": "9"}, b"", id="version"),
        pytest.param({**BINARY, "ce-id": " "}, b"", id="empty id"),
        pytest.param({**BINARY, "ce-source": ""}, b"", id="empty source"),
        pytest.param({**BINARY, "ce-subject": ""}, b"", id="empty subject"),
        pytest.param({**BINARY, "ce-time": "yesterday"}, b"", id="time"),
        pytest.param({**BINARY, "ce-some-thing": "x"}, b"", id="name"),
        pytest.param({**BINARY, "content-type": "no type"}, b"", id="content type"),
        pytest.param({**BINARY, "ce-word": "a\x01b"}, b"", id="control character"),
        pytest.param({**BINARY, "ce-word": "a\udcffb"}, b"", id="unpaired surrogate"),
        pytest.param({"content-type": "application/cloudevents-batch+json"}, b"[]", id="batch"),
        pytest.param(*_structured(b"{"), id="not JSON"),
        pytest.param(*_structured(b"[]"), id="not an object"),
        pytest.param(*_structured(b'{"a":' * 100_000), id="too deep"),
        pytest.param(*_structured(b"\xff"), id="not UTF-8"),
        pytest.param(*_structured({"id": "1"}), id="no version"),
        pytest.param(*_structured(WHOLE | {"id": 1.5}), id="a fraction"),
        pytest.param(*_structured(WHOLE | {"count": 2**31}), id="a long integer"),
        pytest.param(*_structured(WHOLE | {"extra": {"a": 1}}), id="an object"),
        pytest.param(*_structured(WHOLE | {"extra": [1]}), id="an array"),
        pytest.param(*_structured(WHOLE | {"extra": "a\nb"}), id="a line feed"),
        pytest.param(*_structured(WHOLE | {"data_base64": "%"}), id="base64"),
        pytest.param(
            *_structured(WHOLE | {"data": 1, "datacontenttype": "text/plain"}), id="data is not text"
        ),
    ],
)  # fmt: skip
def test_malformed_event_is_rejected(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(MalformedEventError):
        read_event(headers, body)
