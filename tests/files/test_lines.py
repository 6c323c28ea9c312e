"""Parsing of input files: valid and invalid lines, limits, independence of chunks."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.files.checks import MAX_CUSTOM_ID
from lowtide.files.lines import (
    InputLine,
    Limits,
    LineReader,
    Problem,
    UnsendableBody,
    body_of,
    read_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

CHAT = "/v1/chat/completions"


def _line(custom_id: object = "a", **changes: Any) -> bytes:
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": []},
    }
    fields = {key: value for key, value in (request | changes).items() if value is not ...}
    return json.dumps(fields, ensure_ascii=False).encode()


def _deep(levels: int) -> bytes:
    """Return a line nested `levels` deep, counting itself and its body."""
    inside = b"[" * (levels - 2) + b"]" * (levels - 2)
    return _line("deep").replace(b"[]", inside)


def _raw(custom_id: bytes = b'"a"', body: bytes = b'{"model":"m"}') -> bytes:
    """Return a line with these fields verbatim."""
    return b'{"custom_id":%b,"method":"POST","url":"%b","body":%b}' % (
        custom_id,
        CHAT.encode(),
        body,
    )


def _read(
    chunks: Iterable[bytes], limits: Limits | None = None, endpoint: str | None = CHAT
) -> tuple[list[InputLine], LineReader]:
    reader = LineReader(limits or Limits(), endpoint=endpoint)
    return list(read_lines(chunks, reader)), reader


def _codes(reader: LineReader) -> list[tuple[str, str | None, int | None]]:
    return [(problem.code, problem.param, problem.line) for problem in reader.problems]


GOOD = _line("a")

STREAMED: tuple[object, ...] = (True, "true", 1, {})
BAD_LINES = [
    pytest.param(b"[]", "invalid_json_line", None, id="an array"),
    pytest.param(b'"text"', "invalid_json_line", None, id="a string"),
    pytest.param(b"null", "invalid_json_line", None, id="null"),
    pytest.param(b"{", "invalid_json_line", None, id="cut off"),
    pytest.param(GOOD + b" {}", "invalid_json_line", None, id="two objects"),
    pytest.param(GOOD[:-1] + b', "x": NaN}', "invalid_json_line", None, id="NaN"),
    pytest.param(GOOD[:-1] + b', "x": -Infinity}', "invalid_json_line", None, id="Infinity"),
    pytest.param(GOOD[:-1] + b', "x": "\x01"}', "invalid_json_line", None, id="control character"),
    pytest.param(
        GOOD[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested_too_deeply",
        None,
        id="nested too deeply",
    ),
    pytest.param(GOOD.replace(b'"m"', b'"\xff"'), "invalid_utf8", None, id="not UTF-8"),
    pytest.param(
        GOOD.replace(b'"m"', b'"\xed\xa0\x80"'), "invalid_utf8", None, id="UTF-8 surrogate"
    ),
    pytest.param(b"\xff\xfe{\x00}\x00", "invalid_utf8", None, id="UTF-16"),
    pytest.param(_deep(129), "nested_too_deeply", None, id="one level too deep"),
    pytest.param(b"[" * 200, "nested_too_deeply", None, id="deep, never closed"),
    pytest.param(_line(...), "missing_custom_id", "custom_id", id="no custom_id"),
    pytest.param(_line(None), "missing_custom_id", "custom_id", id="null custom_id"),
    pytest.param(_line(""), "missing_custom_id", "custom_id", id="empty custom_id"),
    pytest.param(_line(7), "invalid_custom_id", "custom_id", id="numeric custom_id"),
    pytest.param(_line({"a": 1}), "invalid_custom_id", "custom_id", id="object as custom_id"),
    pytest.param(_line("x\x00"), "invalid_custom_id", "custom_id", id="NUL in custom_id"),
    pytest.param(_raw(b"1e999"), "invalid_custom_id", "custom_id", id="infinite custom_id"),
    pytest.param(_raw(b"1" * 5000), "invalid_custom_id", "custom_id", id="giant custom_id"),
    pytest.param(rb'{"custom_id":"\ud800"}', "invalid_json_line", None, id="unpaired surrogate"),
    pytest.param(
        _raw(body=rb'{"model":"\ude00"}'),
        "invalid_json_line",
        None,
        id="unpaired surrogate in model",
    ),
    pytest.param(
        GOOD[:-1] + rb', "x": "\ud800",}',
        "invalid_json_line",
        None,
        id="unpaired surrogate, malformed",
    ),
    pytest.param(
        _line("x" * (MAX_CUSTOM_ID + 1)), "invalid_custom_id", "custom_id", id="long custom_id"
    ),
    pytest.param(_line(method=...), "invalid_method", "method", id="no method"),
    pytest.param(_line(method="GET"), "invalid_method", "method", id="GET"),
    pytest.param(_line(method="post"), "invalid_method", "method", id="lower-case method"),
    pytest.param(_line(url=...), "invalid_url", "url", id="no url"),
    pytest.param(_line(url="/v1/embeddings"), "invalid_url", "url", id="another endpoint"),
    pytest.param(_line(url="https://example.com"), "invalid_url", "url", id="whole url"),
    pytest.param(_line(url=[CHAT]), "invalid_url", "url", id="url in a list"),
    pytest.param(_line(body=...), "missing_body", "body", id="no body"),
    pytest.param(_line(body=None), "invalid_body", "body", id="null body"),
    pytest.param(_line(body=[]), "invalid_body", "body", id="body a list"),
    pytest.param(_line(body="{}"), "invalid_body", "body", id="body a string"),
    pytest.param(_line(body="custom_id"), "invalid_body", "body", id="body named as a field"),
    pytest.param(_line(body={}), "missing_model", "body.model", id="no model"),
    pytest.param(_line(body={"model": None}), "missing_model", "body.model", id="null model"),
    pytest.param(_line(body={"model": "m" * 513}), "invalid_model", "body.model", id="long model"),
    pytest.param(_raw(body=b'{"model":1e999}'), "invalid_model", "body.model", id="infinite model"),
    pytest.param(_line(body={"model": ""}), "missing_model", "body.model", id="empty model"),
    pytest.param(_line(body={"model": 1}), "invalid_model", "body.model", id="numeric model"),
    pytest.param(_line(body={"model": "\x00"}), "invalid_model", "body.model", id="NUL in model"),
    *(
        pytest.param(
            _line(body={"model": "m", "stream": value}),
            "stream_not_supported",
            "body.stream",
            id=f"stream: {json.dumps(value)}",
        )
        for value in STREAMED
    ),
    pytest.param(
        _raw(body=rb'{"model":"m","str\u0065am":true}'),
        "stream_not_supported",
        "body.stream",
        id="stream, escaped",
    ),
]


@pytest.mark.parametrize(("line", "code", "param"), BAD_LINES)
def test_bad_line_is_reported_and_others_are_read(
    line: bytes, code: str, param: str | None
) -> None:
    first, last = _line("first"), _line("last")
    accepted, reader = _read([first + b"\n" + line + b"\n" + last + b"\n"])
    assert _codes(reader) == [(code, param, 2)]
    assert reader.problems[0].message
    assert [(line.number, line.custom_id) for line in accepted] == [(1, "first"), (3, "last")]
    assert reader.requests == 3


REASONS = [
    pytest.param(b'{"a": NaN}', "NaN is not a JSON number", id="NaN"),
    pytest.param(b'{"a": -Infinity}', "-Infinity is not a JSON number", id="Infinity"),
    pytest.param(
        rb'{"custom_id": "\ud83dx"}',
        r"unpaired surrogate escape, such as \ud800",
        id="surrogate",
    ),
    pytest.param(b"[1]", "it is an array", id="array"),
    pytest.param(b'"a"', "it is a string", id="string"),
    pytest.param(b"1e999", "it is a number", id="number"),
    pytest.param(b"true", "it is a boolean", id="boolean"),
    pytest.param(b"null", "it is null", id="null"),
    pytest.param(b'{"a": 1,}', "at character", id="trailing comma"),
    pytest.param(b"{} {}", "Extra data at character 4", id="two objects"),
    pytest.param(b"\xef\xbb\xbf{}", "Unexpected UTF-8 BOM", id="BOM inside"),
]


@pytest.mark.parametrize(("line", "reason"), REASONS)
def test_message_states_why_line_is_not_an_object(line: bytes, reason: str) -> None:
    _, reader = _read([GOOD + b"\n" + line])
    assert [problem.code for problem in reader.problems] == ["invalid_json_line"]
    assert reason in reader.problems[0].message


@pytest.mark.parametrize(
    ("line", "repeated"),
    [
        pytest.param(GOOD[:-1] + b', "custom_id": "b"}', ["custom_id"], id="custom_id"),
        pytest.param(GOOD[:-1] + b', "method": "POST"}', ["method"], id="method"),
        pytest.param(GOOD[:-1] + b', "url": "%b"}' % CHAT.encode(), ["url"], id="url"),
        pytest.param(GOOD[:-1] + b', "body": {"model": "m"}}', ["body"], id="body"),
        pytest.param(GOOD[:-1] + rb', "custom\u005fid": "b"}', ["custom_id"], id="escaped"),
        pytest.param(
            GOOD[:-1] + b"," + GOOD[1:], ["custom_id", "method", "url", "body"], id="all of them"
        ),
    ],
)
@pytest.mark.parametrize("before", [b"", _line("first") + b"\n"], ids=["alone", "after another"])
def test_repeated_field_is_reported(line: bytes, repeated: list[str], before: bytes) -> None:
    accepted, reader = _read([before + line])
    assert [problem.param for problem in reader.problems] == repeated
    assert {problem.code for problem in reader.problems} == {"repeated_field"}
    assert len(accepted) == bool(before)


def test_repeated_field_is_detected_around_body() -> None:
    """The fast check counts quotes outside the body; a wrong body position gives the same count."""
    last = b'"a","method":"POST","url":"%b"' % CHAT.encode()
    body = b'{"model":"m","n":%b}' % (b"1" * (len(last) - 18))
    line = b'{"body":%b,"custom_id":"b","custom_id":%b}' % (body, last)
    assert line.count(b'"', 0, -1 - len(body)) == 14
    _, reader = _read([_raw(b'"first"') + b"\n" + line])
    assert _codes(reader) == [("repeated_field", "custom_id", 2)]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(_deep(128), id="max depth"),
        pytest.param(_raw(body=b'{"model":"m","a":"' + b"[{" * 500 + b'"}'), id="only text"),
        pytest.param(_raw(body=b'{"model":"m","a":[' + b"[]," * 500 + b"0]}"), id="wide"),
        pytest.param(_raw(rb'"a\"b"'), id="a quote in the custom_id"),
        pytest.param(_line("x" * MAX_CUSTOM_ID), id="longest custom_id"),
        pytest.param(GOOD[:-1] + b', "priority": {"url": 1}}', id="extra fields"),
        pytest.param(
            json.dumps(dict(reversed(json.loads(GOOD).items()))).encode(), id="reordered fields"
        ),
        pytest.param(_raw(body=rb'{"model":"m","a":"\u0000"}'), id="NUL in the body"),
        pytest.param(_raw(body=b'{"model":"m","a":' + b"9" * 5000 + b"}"), id="giant integer"),
        pytest.param(_line(body={"model": "m", "stream": False}), id="stream: false"),
        pytest.param(_line(body={"model": "m", "stream": None}), id="stream: null"),
        pytest.param(_line(body={"model": "m", "a": {"stream": True}}), id="stream, deeper"),
        pytest.param(_raw(body=rb'{"model":"m","a":"\ud83d"}'), id="unpaired surrogate"),
        pytest.param(
            _raw(body=rb'{"model":"m","\uDE00\ud83d":1}'), id="surrogates in reverse order"
        ),
        pytest.param(
            _raw(body=rb'{"model":"m","a":"\\\ud83d"}'), id="unpaired surrogate after a backslash"
        ),
        pytest.param(GOOD[:-1] + rb', "x": "\ud800"}', id="unpaired surrogate outside the body"),
    ],
)
@pytest.mark.parametrize("before", [b"", _line("first") + b"\n"], ids=["alone", "after another"])
def test_unusual_lines_are_accepted(line: bytes, before: bytes) -> None:
    accepted, reader = _read([before + line])
    assert reader.problems == []
    assert accepted[-1].custom_id == json.loads(line, parse_int=str)["custom_id"]
    assert (accepted[-1].offset, accepted[-1].length) == (len(before), len(line))


def test_accepted_body_is_read_from_deep_stack() -> None:
    line = _deep(128)
    accepted, _ = _read([line])
    assert len(accepted) == 1

    def body_at(depth: int) -> bytes | None:
        return body_at(depth - 1) if depth else body_of(line)

    assert body_at(500) == json.dumps(json.loads(line)["body"]).encode()


@pytest.mark.parametrize("length", [64, 65, MAX_CUSTOM_ID])
def test_long_custom_ids_are_distinguished(length: int) -> None:
    ids = ["x" * (length - 1) + end for end in "aba"]
    accepted, reader = _read([b"\n".join(_line(custom_id) for custom_id in ids)])
    assert [line.custom_id for line in accepted] == ids[:2]
    assert _codes(reader) == [("duplicate_custom_id", "custom_id", 3)]


def test_all_problems_of_a_line_are_reported() -> None:
    _, reader = _read([b"{}"])
    assert [code for code, _, _ in _codes(reader)] == [
        "missing_custom_id",
        "invalid_method",
        "invalid_url",
        "missing_body",
    ]


def test_duplicate_custom_id_is_reported() -> None:
    _, reader = _read([b"\n".join([_line("a"), b"", _line("b"), _line("a"), _line("a")])])
    assert _codes(reader) == [("duplicate_custom_id", "custom_id", line) for line in (4, 5)]
    assert "line 1" in reader.problems[0].message


ONE_MODEL = Limits(max_models=1)


def test_second_model_is_reported_where_files_may_have_one() -> None:
    other = _line("b", body={"model": "other"})
    _, reader = _read([b"\n".join([_line("a"), other, _line("c")])], ONE_MODEL)
    assert _codes(reader) == [("mismatched_model", "body.model", 2)]
    assert (reader.model, reader.models) == ("m", None)


def test_models_are_numbered_and_counted() -> None:
    names = ["m", "other", "m", "third", "other", "m"]
    lines = [_line(str(n), body={"model": name}) for n, name in enumerate(names)]
    accepted, reader = _read([b"\n".join(lines)])
    assert [line.model for line in accepted] == [0, 1, 0, 2, 1, 0]
    assert reader.models == (("m", 3), ("other", 2), ("third", 1))
    assert (reader.model, reader.problems) == (None, [])


def test_too_many_models_are_reported() -> None:
    lines = [_line(str(n), body={"model": f"m{n}"}) for n in range(4)]
    _, reader = _read([b"\n".join(lines)], Limits(max_models=2))
    assert _codes(reader) == [("too_many_models", "body.model", line) for line in (3, 4)]


def _moderation(custom_id: str, **body: object) -> bytes:
    return _line(custom_id, url="/v1/moderations", body={"input": "hi", **body})


@pytest.mark.parametrize("endpoint", [None, "/v1/moderations"])
@pytest.mark.parametrize(
    ("bodies", "problems", "model"),
    [
        pytest.param([{}, {}], [], None, id="none"),
        pytest.param([{}, {"model": None}, {"model": ""}], [], None, id="null or empty"),
        pytest.param([{"model": "a"}, {"model": "a"}], [], "a", id="one"),
        pytest.param([{}, {"model": "a"}, {}], [2], None, id="none, then one"),
        pytest.param([{"model": "a"}, {}, {"model": "a"}], [2], "a", id="one, then none"),
    ],
)
def test_moderations_need_no_model(
    endpoint: str | None, bodies: list[dict[str, Any]], problems: list[int], model: str | None
) -> None:
    content = b"\n".join(_moderation(str(n), **body) for n, body in enumerate(bodies))
    accepted, reader = _read([content], ONE_MODEL, endpoint=endpoint)
    assert _codes(reader) == [("mismatched_model", "body.model", line) for line in problems]
    assert reader.model == model
    assert len(accepted) == len(bodies) - len(problems)


@pytest.mark.parametrize(
    ("body", "sendable"),
    [
        pytest.param(rb'{"a":"\ud83d\ude00 \\ud83d"}', True, id="surrogate pair"),
        pytest.param(rb'{"a":"\ud83d"}', False, id="high surrogate"),
        pytest.param(rb'{"a":"\uDE00"}', False, id="low surrogate"),
        pytest.param(rb'{"a":"\ud83d\ud83d\ude00"}', False, id="high surrogate before a pair"),
    ],
)
def test_body_with_unpaired_surrogate_is_unsendable(body: bytes, sendable: bool) -> None:
    line = _raw(body=body)
    if sendable:
        assert body_of(line) == body
    else:
        with pytest.raises(UnsendableBody, match=r"unpaired surrogate escape, such as \\ud800"):
            body_of(line)


def test_first_valid_url_sets_missing_endpoint() -> None:
    lines = [_line("a", url="/nowhere"), _line("b", url="/v1/responses"), _line("c")]
    accepted, reader = _read([b"\n".join(lines)], endpoint=None)
    assert reader.endpoint == "/v1/responses"
    assert _codes(reader) == [("invalid_url", "url", 1), ("invalid_url", "url", 3)]
    assert [line.custom_id for line in accepted] == ["b"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\n\n \t\r\n", id="blank lines"),
        pytest.param(b"\xef\xbb\xbf", id="BOM"),
        pytest.param(b"\xef\xbb\xbf\r\n", id="BOM and a line end"),
    ],
)
def test_file_without_requests_is_reported_empty(content: bytes) -> None:
    accepted, reader = _read([content])
    assert accepted == []
    assert _codes(reader) == [("empty_file", None, None)]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbf%s\n%s\n", id="BOM"),
        pytest.param(b"%s\r\n%s\r\n", id="CRLF"),
        pytest.param(b"\n\n%s\n\r\n \t\n%s\n\n", id="blank lines"),
        pytest.param(b"%s\n%s", id="no last newline"),
        pytest.param(b"  %s\t \n\t%s \r\n", id="space around"),
    ],
)
def test_line_endings_and_blanks_are_accepted(content: bytes) -> None:
    data = content % (_line("a"), _line("b"))
    accepted, reader = _read([data])
    assert reader.problems == []
    assert [(line.number, line.custom_id) for line in accepted] == [(1, "a"), (2, "b")]
    for line in accepted:
        assert data[line.offset : line.offset + line.length] == _line(line.custom_id)


def test_bom_is_accepted_only_at_start() -> None:
    _, reader = _read([_line("a") + b"\n\xef\xbb\xbf" + _line("b")])
    assert _codes(reader) == [("invalid_json_line", None, 2)]


@pytest.mark.parametrize(
    ("count", "codes"),
    [pytest.param(5, [], id="max"), pytest.param(6, ["too_many_requests"], id="max + 1")],
)
def test_number_of_requests_is_limited(count: int, codes: list[str]) -> None:
    content = b"\n".join(_line(str(number)) for number in range(count))
    accepted, reader = _read([content], Limits(max_lines=5))
    assert [problem.code for problem in reader.problems] == codes
    assert len(accepted) == min(count, 5)
    assert reader.requests == count


@pytest.mark.parametrize(
    ("extra", "codes"),
    [
        pytest.param(0, [], id="max"),
        pytest.param(1, [("line_too_long", None, 1)], id="max + 1"),
    ],
)
@pytest.mark.parametrize("ending", [b"", b"\n", b"\nx"], ids=["end", "newline", "more"])
def test_line_length_is_limited(
    extra: int, codes: list[tuple[str, str | None, int | None]], ending: bytes
) -> None:
    content = _line("a").ljust(200 + extra)
    _, reader = _read([content + ending], Limits(max_line_bytes=200))
    assert [code for code in _codes(reader) if code[0] == "line_too_long"] == codes


def test_line_after_too_long_one_has_right_offset() -> None:
    content = b"x" * 1000 + b"\n" + _line("b")
    accepted, _ = _read(
        [content[i : i + 7] for i in range(0, len(content), 7)], Limits(max_line_bytes=200)
    )
    assert [(line.custom_id, line.number, line.offset) for line in accepted] == [("b", 2, 1001)]


def test_problems_are_limited_but_include_that_of_file() -> None:
    content = b"{}\n" * 200
    _, reader = _read([content])
    assert len(reader.problems) == 100
    assert {problem.code for problem in reader.problems} >= {"missing_custom_id"}
    _, reader = _read([content], Limits(max_lines=150))
    assert len(reader.problems) == 100
    assert reader.problems[-1].code == "too_many_requests"


def test_requests_are_only_counted_after_max_problems() -> None:
    content = b"{}\n" * 25 + b"\n" + GOOD + b"\n \r\n" + b"x" * 300 + b"\n" + GOOD
    for size in (1, 7, len(content)):
        chunks = [content[i : i + size] for i in range(0, len(content), size)]
        accepted, reader = _read(chunks, Limits(max_line_bytes=200))
        assert accepted == []
        assert reader.requests == 28
        assert {problem.line for problem in reader.problems} == set(range(1, 26))


def test_endless_line_takes_constant_memory() -> None:
    reader = LineReader(Limits(max_line_bytes=100_000))
    chunk = b"x" * 65536
    tracemalloc.start()
    try:
        for _ in range(1000):
            assert list(reader.feed(chunk)) == []
        list(reader.finish())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert _codes(reader) == [("line_too_long", None, 1)]
    assert reader.requests == 1


_LARGE = 2 << 20


def _large_line(unit: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a line of about 2 MiB whose body repeats `unit`, between `before` and `after`."""
    return _raw(body=b'{"model":"m","a":' + before + unit * (_LARGE // len(unit)) + after + b"}")


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        pytest.param(_large_line(b"a", b'"', b'"'), [], id="text"),
        pytest.param(
            _large_line("é".encode(), b'"\xf0\x9f\x90\x9a', b'"'), [], id="wide characters"
        ),
        pytest.param(_large_line(rb"\n", b'"', b'"'), [], id="escapes"),
        pytest.param(_large_line(b'"",[],', b"[", b"0]"), [], id="brackets"),
        pytest.param(_large_line(rb"\n", b'"', rb'\ud83d"'), [], id="unpaired surrogate"),
        pytest.param(_large_line(rb"\ud83d", b'"', b'"'), [], id="unpaired surrogates"),
        pytest.param(_large_line(b"[],", b"[", b"]"), ["invalid_json_line"], id="malformed"),
        pytest.param(_large_line(b"[") + b"", ["nested_too_deeply"], id="deep"),
        pytest.param(
            GOOD[:-1] + b',"x":[' + b"[]," * (_LARGE // 3) + b"0]}", ["line_too_long"], id="no body"
        ),
    ],
)
def test_large_line_takes_at_most_four_times_its_size(line: bytes, codes: list[str]) -> None:
    chunks = [line[at : at + 65536] for at in range(0, len(line), 65536)]
    reader = LineReader(endpoint=CHAT)
    tracemalloc.start()
    try:
        accepted = list(read_lines(chunks, reader))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [problem.code for problem in reader.problems] == codes
    assert len(accepted) == (not codes)
    assert peak < 4 * len(line)


def test_endless_lines_take_constant_memory() -> None:
    reader = LineReader(Limits(max_lines=100))
    tracemalloc.start()
    try:
        for block in range(200):
            lines = [b'{"custom_id":"%020d"}\n' % (block * 100 + i) for i in range(100)]
            list(reader.feed(b"".join(lines)))
        list(reader.finish())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000
    assert reader.requests == 20_000
    assert reader.problems[-1].code == "too_many_requests"


_PIECES = st.sampled_from(
    [
        GOOD,
        _line("b"),
        _line("ü€𝄞"),
        _line("", method="GET"),
        _line("c", body={"model": "other"}),
        b"",
        b" \t",
        b"\r",
        b"{}",
        b"\xff\xfe",
        b"not json",
        b"\xef\xbb\xbf",
        b"x" * 300,
        GOOD + b"\r",
        b"  " + _line("d") + b" ",
    ]
)


@given(
    st.lists(_PIECES, max_size=8),
    st.booleans(),
    st.lists(st.integers(0, 2000), max_size=12),
    st.sampled_from([None, CHAT]),
)
def test_result_does_not_depend_on_chunks(
    pieces: list[bytes],
    bom: bool,
    cuts: list[int],
    endpoint: str | None,
) -> None:
    content = (b"\xef\xbb\xbf" if bom else b"") + b"\n".join(pieces)
    limits = Limits(max_lines=5, max_line_bytes=250, max_problems=6)
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    chunks = [content[a:b] for a, b in pairwise(edges)]
    whole, at_once = _read([content], limits, endpoint)
    parts, in_chunks = _read(chunks, limits, endpoint)
    assert parts == whole
    assert in_chunks.problems == at_once.problems
    assert in_chunks.requests == at_once.requests
    assert (in_chunks.model, in_chunks.endpoint) == (at_once.model, at_once.endpoint)
    for line in whole:
        reread, alone = _read([content[line.offset : line.offset + line.length]])
        assert [parsed.custom_id for parsed in reread] == [line.custom_id]
        assert (reread[0].offset, reread[0].length) == (0, line.length)
        assert not [problem for problem in alone.problems if problem.param != "url"]


@given(st.binary(max_size=400), st.integers(1, 50))
def test_random_bytes_have_same_problems_in_any_chunks(content: bytes, size: int) -> None:
    limits = Limits(max_line_bytes=100)
    whole = _read([content], limits)
    parts = _read([content[i : i + size] for i in range(0, len(content), size)], limits)
    assert parts[0] == whole[0] == []
    assert parts[1].problems == whole[1].problems
    assert all(isinstance(problem, Problem) for problem in whole[1].problems)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m"}',
        b'{ "model" : "m" , "n": 123456789012345678901234567890, "f": 1e400, "d": 0.10 }',
        '{"model":"m","é":"\\u0000 \\ud83d\\ude00 é"}'.encode(),
        b'{"model":"m","model":"m"}',
    ],
    ids=["plain", "numbers", "escapes", "duplicate keys"],
)
def test_bodies_are_kept_byte_for_byte(body: bytes) -> None:
    line = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + body + b"}"
    accepted, reader = _read([line])
    assert reader.problems == []
    assert len(accepted) == 1
    assert body_of(line) == body
