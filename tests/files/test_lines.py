"""Input files: every way a line can be wrong, and that chunking never matters."""

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
    whole = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": []},
    }
    kept = {key: value for key, value in (whole | changes).items() if value is not ...}
    return json.dumps(kept, ensure_ascii=False).encode()


def _deep(levels: int) -> bytes:
    """A line nested `levels` deep, itself and its body included."""
    inside = b"[" * (levels - 2) + b"]" * (levels - 2)
    return _line("deep").replace(b"[]", inside)


def _raw(custom_id: bytes = b'"a"', body: bytes = b'{"model":"m"}') -> bytes:
    """A line with these fields as they are written."""
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
    pytest.param(_raw(b"1e999"), "invalid_custom_id", "custom_id", id="endless custom_id"),
    pytest.param(_raw(b"1" * 5000), "invalid_custom_id", "custom_id", id="giant custom_id"),
    pytest.param(rb'{"custom_id":"\ud800"}', "invalid_json_line", None, id="half a character"),
    pytest.param(
        _raw(body=rb'{"model":"\ude00"}'), "invalid_json_line", None, id="half a character as model"
    ),
    pytest.param(
        GOOD[:-1] + rb', "x": "\ud800",}', "invalid_json_line", None, id="half a character and more"
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
    pytest.param(_raw(body=b'{"model":1e999}'), "invalid_model", "body.model", id="endless model"),
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
def test_a_bad_line_is_named_and_the_rest_still_read(
    line: bytes, code: str, param: str | None
) -> None:
    first, last = _line("first"), _line("last")
    found, reader = _read([first + b"\n" + line + b"\n" + last + b"\n"])
    assert _codes(reader) == [(code, param, 2)]
    assert reader.problems[0].message
    assert [(line.number, line.custom_id) for line in found] == [(1, "first"), (3, "last")]
    assert reader.requests == 3


REASONS = [
    pytest.param(b'{"a": NaN}', "NaN is not a JSON number", id="NaN"),
    pytest.param(b'{"a": -Infinity}', "-Infinity is not a JSON number", id="Infinity"),
    pytest.param(
        rb'{"custom_id": "\ud83dx"}',
        r"unpaired surrogate escape, such as \ud800",
        id="half",
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
def test_why_a_line_is_no_object_is_told(line: bytes, reason: str) -> None:
    _, reader = _read([GOOD + b"\n" + line])
    assert [problem.code for problem in reader.problems] == ["invalid_json_line"]
    assert reason in reader.problems[0].message


@pytest.mark.parametrize(
    ("line", "again"),
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
@pytest.mark.parametrize("before", [b"", _line("first") + b"\n"], ids=["alone", "behind another"])
def test_a_field_may_not_come_twice(line: bytes, again: list[str], before: bytes) -> None:
    found, reader = _read([before + line])
    assert [problem.param for problem in reader.problems] == again
    assert {problem.code for problem in reader.problems} == {"repeated_field"}
    assert len(found) == bool(before)


def test_a_field_is_seen_twice_wherever_the_body_stands() -> None:
    """The quick look counts quotes before the body; here they would add up if it looked wrongly."""
    last = b'"a","method":"POST","url":"%b"' % CHAT.encode()
    body = b'{"model":"m","n":%b}' % (b"1" * (len(last) - 18))
    line = b'{"body":%b,"custom_id":"b","custom_id":%b}' % (body, last)
    assert line.count(b'"', 0, -1 - len(body)) == 14
    _, reader = _read([_raw(b'"first"') + b"\n" + line])
    assert _codes(reader) == [("repeated_field", "custom_id", 2)]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(_deep(128), id="the deepest"),
        pytest.param(_raw(body=b'{"model":"m","a":"' + b"[{" * 500 + b'"}'), id="only text"),
        pytest.param(_raw(body=b'{"model":"m","a":[' + b"[]," * 500 + b"0]}"), id="wide"),
        pytest.param(_raw(rb'"a\"b"'), id="a quote in the custom_id"),
        pytest.param(_line("x" * MAX_CUSTOM_ID), id="the longest custom_id"),
        pytest.param(GOOD[:-1] + b', "priority": {"url": 1}}', id="fields of its own"),
        pytest.param(
            json.dumps(dict(reversed(json.loads(GOOD).items()))).encode(), id="another order"
        ),
        pytest.param(_raw(body=rb'{"model":"m","a":"\u0000"}'), id="NUL in the body"),
        pytest.param(_raw(body=b'{"model":"m","a":' + b"9" * 5000 + b"}"), id="giant integer"),
        pytest.param(_line(body={"model": "m", "stream": False}), id="stream: false"),
        pytest.param(_line(body={"model": "m", "stream": None}), id="stream: null"),
        pytest.param(_line(body={"model": "m", "a": {"stream": True}}), id="stream, deeper"),
        pytest.param(_raw(body=rb'{"model":"m","a":"\ud83d"}'), id="half a character"),
        pytest.param(
            _raw(body=rb'{"model":"m","\uDE00\ud83d":1}'), id="halves the wrong way round"
        ),
        pytest.param(_raw(body=rb'{"model":"m","a":"\\\ud83d"}'), id="half, behind a backslash"),
        pytest.param(GOOD[:-1] + rb', "x": "\ud800"}', id="half a character outside of the body"),
    ],
)
@pytest.mark.parametrize("before", [b"", _line("first") + b"\n"], ids=["alone", "behind another"])
def test_unusual_lines_are_good(line: bytes, before: bytes) -> None:
    found, reader = _read([before + line])
    assert reader.problems == []
    assert found[-1].custom_id == json.loads(line, parse_int=str)["custom_id"]
    assert (found[-1].offset, found[-1].length) == (len(before), len(line))


def test_an_accepted_body_can_be_read_from_any_depth_of_the_stack() -> None:
    line = _deep(128)
    found, _ = _read([line])
    assert len(found) == 1

    def body_at(depth: int) -> bytes | None:
        return body_at(depth - 1) if depth else body_of(line)

    assert body_at(500) == json.dumps(json.loads(line)["body"]).encode()


@pytest.mark.parametrize("length", [64, 65, MAX_CUSTOM_ID])
def test_long_custom_ids_are_told_apart(length: int) -> None:
    ids = ["x" * (length - 1) + end for end in "aba"]
    found, reader = _read([b"\n".join(_line(custom_id) for custom_id in ids)])
    assert [line.custom_id for line in found] == ids[:2]
    assert _codes(reader) == [("duplicate_custom_id", "custom_id", 3)]


def test_all_problems_of_a_line_are_reported() -> None:
    _, reader = _read([b"{}"])
    assert [code for code, _, _ in _codes(reader)] == [
        "missing_custom_id",
        "invalid_method",
        "invalid_url",
        "missing_body",
    ]


def test_a_custom_id_may_not_come_twice() -> None:
    _, reader = _read([b"\n".join([_line("a"), b"", _line("b"), _line("a"), _line("a")])])
    assert _codes(reader) == [("duplicate_custom_id", "custom_id", line) for line in (4, 5)]
    assert "line 1" in reader.problems[0].message


def test_one_model_a_file() -> None:
    other = _line("b", body={"model": "other"})
    _, reader = _read([b"\n".join([_line("a"), other, _line("c")])])
    assert _codes(reader) == [("mismatched_model", "body.model", 2)]
    assert reader.model == "m"


def _moderation(custom_id: str, **body: object) -> bytes:
    return _line(custom_id, url="/v1/moderations", body={"input": "hi", **body})


@pytest.mark.parametrize("endpoint", [None, "/v1/moderations"])
@pytest.mark.parametrize(
    ("bodies", "problems", "model"),
    [
        pytest.param([{}, {}], [], None, id="none"),
        pytest.param([{}, {"model": None}, {"model": ""}], [], None, id="as good as none"),
        pytest.param([{"model": "a"}, {"model": "a"}], [], "a", id="one"),
        pytest.param([{}, {"model": "a"}, {}], [2], None, id="none, then one"),
        pytest.param([{"model": "a"}, {}, {"model": "a"}], [2], "a", id="one, then none"),
    ],
)
def test_moderations_need_no_model(
    endpoint: str | None, bodies: list[dict[str, Any]], problems: list[int], model: str | None
) -> None:
    content = b"\n".join(_moderation(str(n), **body) for n, body in enumerate(bodies))
    found, reader = _read([content], endpoint=endpoint)
    assert _codes(reader) == [("mismatched_model", "body.model", line) for line in problems]
    assert reader.model == model
    assert len(found) == len(bodies) - len(problems)


@pytest.mark.parametrize(
    ("body", "fit"),
    [
        pytest.param(rb'{"a":"\ud83d\ude00 \\ud83d"}', True, id="whole characters"),
        pytest.param(rb'{"a":"\ud83d"}', False, id="first half"),
        pytest.param(rb'{"a":"\uDE00"}', False, id="second half"),
        pytest.param(rb'{"a":"\ud83d\ud83d\ude00"}', False, id="a half before a whole one"),
    ],
)
def test_a_body_with_half_a_character_cannot_be_sent(body: bytes, fit: bool) -> None:
    line = _raw(body=body)
    if fit:
        assert body_of(line) == body
    else:
        with pytest.raises(UnsendableBody, match=r"unpaired surrogate escape, such as \\ud800"):
            body_of(line)


def test_without_an_endpoint_the_first_good_url_decides() -> None:
    lines = [_line("a", url="/nowhere"), _line("b", url="/v1/responses"), _line("c")]
    found, reader = _read([b"\n".join(lines)], endpoint=None)
    assert reader.endpoint == "/v1/responses"
    assert _codes(reader) == [("invalid_url", "url", 1), ("invalid_url", "url", 3)]
    assert [line.custom_id for line in found] == ["b"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\n\n \t\r\n", id="blank lines"),
        pytest.param(b"\xef\xbb\xbf", id="BOM"),
        pytest.param(b"\xef\xbb\xbf\r\n", id="BOM and a line end"),
    ],
)
def test_a_file_without_requests_is_empty(content: bytes) -> None:
    found, reader = _read([content])
    assert found == []
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
def test_accepted_shapes(content: bytes) -> None:
    whole = content % (_line("a"), _line("b"))
    found, reader = _read([whole])
    assert reader.problems == []
    assert [(line.number, line.custom_id) for line in found] == [(1, "a"), (2, "b")]
    for line in found:
        assert whole[line.offset : line.offset + line.length] == _line(line.custom_id)


def test_a_bom_belongs_only_at_the_start() -> None:
    _, reader = _read([_line("a") + b"\n\xef\xbb\xbf" + _line("b")])
    assert _codes(reader) == [("invalid_json_line", None, 2)]


@pytest.mark.parametrize(
    ("count", "codes"),
    [pytest.param(5, [], id="the most"), pytest.param(6, ["too_many_requests"], id="one more")],
)
def test_the_number_of_lines_is_bounded(count: int, codes: list[str]) -> None:
    content = b"\n".join(_line(str(number)) for number in range(count))
    found, reader = _read([content], Limits(max_lines=5))
    assert [problem.code for problem in reader.problems] == codes
    assert len(found) == min(count, 5)
    assert reader.requests == count


@pytest.mark.parametrize(
    ("extra", "codes"),
    [
        pytest.param(0, [], id="the longest"),
        pytest.param(1, [("line_too_long", None, 1)], id="longer"),
    ],
)
@pytest.mark.parametrize("ending", [b"", b"\n", b"\nx"], ids=["end", "newline", "more"])
def test_the_length_of_a_line_is_bounded(
    extra: int, codes: list[tuple[str, str | None, int | None]], ending: bytes
) -> None:
    content = _line("a").ljust(200 + extra)
    _, reader = _read([content + ending], Limits(max_line_bytes=200))
    assert [code for code in _codes(reader) if code[0] == "line_too_long"] == codes


def test_the_line_after_a_too_long_one_is_read_where_it_lies() -> None:
    content = b"x" * 1000 + b"\n" + _line("b")
    found, _ = _read(
        [content[i : i + 7] for i in range(0, len(content), 7)], Limits(max_line_bytes=200)
    )
    assert [(line.custom_id, line.number, line.offset) for line in found] == [("b", 2, 1001)]


def test_problems_stop_at_a_hundred_but_the_files_own_is_kept() -> None:
    content = b"{}\n" * 200
    _, reader = _read([content])
    assert len(reader.problems) == 100
    assert {problem.code for problem in reader.problems} >= {"missing_custom_id"}
    _, reader = _read([content], Limits(max_lines=150))
    assert len(reader.problems) == 100
    assert reader.problems[-1].code == "too_many_requests"


def test_with_all_problems_told_the_rest_is_only_counted() -> None:
    content = b"{}\n" * 25 + b"\n" + GOOD + b"\n \r\n" + b"x" * 300 + b"\n" + GOOD
    for size in (1, 7, len(content)):
        chunks = [content[i : i + size] for i in range(0, len(content), size)]
        found, reader = _read(chunks, Limits(max_line_bytes=200))
        assert found == []
        assert reader.requests == 28
        assert {problem.line for problem in reader.problems} == set(range(1, 26))


def test_an_endless_line_takes_no_memory() -> None:
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


def _filled(unit: bytes, before: bytes = b"", behind: bytes = b"") -> bytes:
    """A line of about 2 MiB whose body is made of `unit`, after `before` and before `behind`."""
    return _raw(body=b'{"model":"m","a":' + before + unit * (_LARGE // len(unit)) + behind + b"}")


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        pytest.param(_filled(b"a", b'"', b'"'), [], id="text"),
        pytest.param(_filled("é".encode(), b'"\xf0\x9f\x90\x9a', b'"'), [], id="wide characters"),
        pytest.param(_filled(rb"\n", b'"', b'"'), [], id="escapes"),
        pytest.param(_filled(b'"",[],', b"[", b"0]"), [], id="brackets"),
        pytest.param(_filled(rb"\n", b'"', rb'\ud83d"'), [], id="half a character"),
        pytest.param(_filled(rb"\ud83d", b'"', b'"'), [], id="half characters"),
        pytest.param(_filled(b"[],", b"[", b"]"), ["invalid_json_line"], id="malformed"),
        pytest.param(_filled(b"[") + b"", ["nested_too_deeply"], id="deep"),
        pytest.param(
            GOOD[:-1] + b',"x":[' + b"[]," * (_LARGE // 3) + b"0]}", ["line_too_long"], id="no body"
        ),
    ],
)
def test_a_large_line_takes_little_more_memory_than_its_bytes(
    line: bytes, codes: list[str]
) -> None:
    chunks = [line[at : at + 65536] for at in range(0, len(line), 65536)]
    reader = LineReader(endpoint=CHAT)
    tracemalloc.start()
    try:
        found = list(read_lines(chunks, reader))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [problem.code for problem in reader.problems] == codes
    assert len(found) == (not codes)
    assert peak < 4 * len(line)


def test_endless_lines_take_no_memory() -> None:
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
def test_chunking_never_matters(
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
        again, alone = _read([content[line.offset : line.offset + line.length]])
        assert [found.custom_id for found in again] == [line.custom_id]
        assert (again[0].offset, again[0].length) == (0, line.length)
        assert not [problem for problem in alone.problems if problem.param != "url"]


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_are_judged_alike_in_any_chunks(content: bytes, size: int) -> None:
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
    found, reader = _read([line])
    assert reader.problems == []
    assert len(found) == 1
    assert body_of(line) == body
