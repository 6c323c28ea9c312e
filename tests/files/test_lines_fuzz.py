"""Differential fuzzing of the reader against a strict reference, with mutated real files."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtide.files.lines import ENDPOINTS, Limits, LineReader, read_lines

QUESTIONS = Path(__file__).parents[2] / "examples" / "questions.jsonl"
REAL = QUESTIONS.read_bytes().splitlines()[:5]
LIMITS = Limits(max_lines=12, max_line_bytes=3000, max_problems=1000, max_models=2)
DEEPEST = 128
FIELDS = ("custom_id", "method", "url", "body")


class Object(list[tuple[str, Any]]):
    """A JSON object as the list of its pairs, duplicates included."""

    def last(self, key: str) -> Any:
        return next((value for name, value in reversed(self) if name == key), None)

    def has(self, key: str) -> bool:
        return any(name == key for name, _ in self)


class Number(str):
    """A JSON number verbatim."""

    __slots__ = ()


class Verdict(NamedTuple):
    """The result of a reader; `accepted` has number, custom_id, start, end and number of model."""

    accepted: list[tuple[int, str, int, int, int]]
    problems: list[tuple[int | None, str, str | None]]
    requests: int
    model: str | None
    endpoint: str | None


class Reference:
    """A reference reader built on the standard library: slow and simple."""

    def __init__(self, endpoint: str | None) -> None:
        self.endpoint = endpoint
        self.models: list[str | None] = []
        self.number = 0
        self.used: set[str] = set()
        self.line_problems: list[tuple[str, str | None]] = []

    def judge(self, content: bytes) -> Verdict:
        accepted = []
        problems: list[tuple[int | None, str, str | None]] = []
        requests = 0
        for number, match in enumerate(re.finditer(rb"[^\n]*(?:\n|\Z)", content), 1):
            self.line_problems = []
            start, end = match.start(), match.end() - match[0].endswith(b"\n")
            too_long = end - start > LIMITS.max_line_bytes
            start += 3 if number == 1 and match[0].startswith(b"\xef\xbb\xbf") else 0
            while start < end and content[start] in b" \t\r":
                start += 1
            while start < end and content[end - 1] in b" \t\r":
                end -= 1
            if start == end and not too_long:
                continue
            requests += 1
            if requests > LIMITS.max_lines:
                continue
            custom_id = None
            if too_long:
                self.report("line_too_long")
            else:
                custom_id = self.line(content[start:end])
            if not self.line_problems:
                assert custom_id is not None
                accepted.append((requests, custom_id, start, end, self.number))
            problems += [(number, code, param) for code, param in self.line_problems]
        if requests == 0:
            problems.append((None, "empty_file", None))
        if requests > LIMITS.max_lines:
            problems.append((None, "too_many_requests", None))
        model = self.models[0] if len(self.models) == 1 else None
        return Verdict(accepted, problems, requests, model, self.endpoint)

    def report(self, code: str, param: str | None = None) -> None:
        self.line_problems.append((code, param))

    def line(self, line: bytes) -> str | None:
        try:
            text = line.decode("utf-8", errors="strict")
        except UnicodeDecodeError:
            self.report("invalid_utf8")
            return None
        if nesting(text) > DEEPEST:
            self.report("nested_too_deeply")
            return None
        try:
            value = json.loads(
                text, object_pairs_hook=Object, parse_constant=refuse, parse_int=Number,
                parse_float=Number,
            )  # fmt: skip
            if isinstance(value, Object):
                check_surrogates(identifying_values(value))
        except ValueError:
            self.report("invalid_json_line")
            return None
        if not isinstance(value, Object):
            self.report("invalid_json_line")
            return None
        return self.fields(value)

    def fields(self, value: Object) -> str | None:
        for name in FIELDS:
            if len([key for key, _ in value if key == name]) > 1:
                self.report("repeated_field", name)
        custom_id = value.last("custom_id")
        if custom_id is None or (is_text(custom_id) and custom_id == ""):
            self.report("missing_custom_id", "custom_id")
        elif not is_text(custom_id) or len(custom_id) > 512 or "\0" in custom_id:
            self.report("invalid_custom_id", "custom_id")
        elif custom_id in self.used:
            self.report("duplicate_custom_id", "custom_id")
        else:
            self.used.add(custom_id)
        if not is_text(value.last("method")) or value.last("method") != "POST":
            self.report("invalid_method", "method")
        url = value.last("url")
        if self.endpoint is None and is_text(url) and url in ENDPOINTS:
            self.endpoint = url
        if not is_text(url) or url != self.endpoint:
            self.report("invalid_url", "url")
        self.body(value)
        return custom_id if is_text(custom_id) else None

    def body(self, value: Object) -> None:
        body = value.last("body")
        if not value.has("body"):
            self.report("missing_body", "body")
        elif not isinstance(body, Object):
            self.report("invalid_body", "body")
        else:
            self.check_model(body.last("model"))
            if body.last("stream") not in (None, False) or isinstance(body.last("stream"), Number):
                self.report("stream_not_supported", "body.stream")

    def check_model(self, model: Any) -> None:
        absent = model is None or (is_text(model) and model == "")
        if absent and self.endpoint != "/v1/moderations":
            self.report("missing_model", "body.model")
        elif not absent and (not is_text(model) or len(model) > 512 or "\0" in model):
            self.report("invalid_model", "body.model")
        else:
            self.check_number(None if absent else model)

    def check_number(self, model: str | None) -> None:
        if model not in self.models and len(self.models) < LIMITS.max_models:
            self.models.append(model)
        if model in self.models:
            self.number = self.models.index(model)
        else:
            self.report("too_many_models", "body.model")


def is_text(value: object) -> bool:
    return isinstance(value, str) and not isinstance(value, Number)


def refuse(constant: str) -> Any:
    raise ValueError(constant)


def identifying_values(line: Object) -> list[Any]:
    """Return the values that identify a request: an unpaired surrogate in them invalidates the line."""
    body = line.last("body")
    model = body.last("model") if isinstance(body, Object) else None
    return [line.last("custom_id"), line.last("method"), line.last("url"), model]


def check_surrogates(value: object) -> None:
    """Raise UnicodeEncodeError if a string has an unpaired surrogate."""
    if isinstance(value, str):
        value.encode("utf-8", errors="strict")
    elif isinstance(value, Object):
        for key, inner in value:
            check_surrogates(key)
            check_surrogates(inner)
    elif isinstance(value, list):
        for inner in value:
            check_surrogates(inner)


def nesting(text: str) -> int:
    deepest = level = 0
    in_string = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif in_string:
            escaped = character == "\\"
            in_string = character != '"'
        elif character == '"':
            in_string = True
        elif character in "[{":
            level += 1
            deepest = max(deepest, level)
        elif character in "]}":
            level -= 1
    return deepest


def read(content: bytes, cuts: list[int], endpoint: str | None) -> Verdict:
    reader = LineReader(LIMITS, endpoint=endpoint)
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    lines = list(read_lines((content[a:b] for a, b in pairwise(edges)), reader))
    assert all(problem.message for problem in reader.problems)
    return Verdict(
        [
            (line.number, line.custom_id, line.offset, line.offset + line.length, line.model)
            for line in lines
        ],
        [(problem.line, problem.code, problem.param) for problem in reader.problems],
        reader.requests,
        reader.model,
        reader.endpoint,
    )


def assert_agreement(content: bytes, cuts: list[int], endpoint: str | None) -> None:
    verdict = read(content, cuts, endpoint)
    assert verdict == Reference(endpoint).judge(content)
    assert verdict == read(content, [], endpoint)


ODD = st.sampled_from(
    [
        b"null", b"true", b"0", b"-0.0", b"1e999", b"123456789012345678901234567890", b"01", b"1.",
        b"NaN", b"-Infinity", b'""', rb'"\u0000"', rb'"\ud800"', rb'"\ud83d\ude00"', b'"\xff"',
        b'"\xed\xa0\x80"', b'"\x7f"', b'"\x01"', rb'"\x"', b'"' + b"x" * 513 + b'"', b"[]", b"{}",
        b'"' + "é".encode() * 512 + b'"', b"[1,]", b'{"a":1,}', b"'a'", b"", b'"a" "b"', b"[" * 64,
    ]
)  # fmt: skip
CLOSING = {b"[": b"]", b'{"a":': b"}", b'[{"model":"a","b":': b"}]"}
DEEP = st.builds(
    lambda opening, depth, extra: opening * depth + b"0" + CLOSING[opening] * (depth + extra),
    st.sampled_from([*CLOSING]),
    st.sampled_from([DEEPEST // 2 - 1, DEEPEST // 2, *range(DEEPEST - 3, DEEPEST + 3)]),
    st.sampled_from([0, 0, 0, 1, -1]),
)
TYPICAL = {
    "custom_id": st.sampled_from(
        [b'"ticket-01"', rb'"ticket\u002d01"', b'"a{}b"', rb'"\\"', rb'"\""', b'"a\\nb"', b'"1"',
         b'"' + b"x" * 64 + b'"', b'"' + b"x" * 65 + b'"', rb'"a\u0000"', '"é"'.encode()]
    ),
    "method": st.sampled_from([b'"post"', rb'"\u0050OST"', b'"GET"', b'["POST"]']),
    "url": st.sampled_from(
        [b'"/v1/embeddings"', rb'"\/v1\/chat\/completions"', b'"/v1/chat/completions/"', b'"/"']
    ),
    "body": st.sampled_from(
        [b'{"model":""}', rb'{"model":"\u0000"}', b'{"model":1}', b'{"model":null}', b"{}",
         b'{"model":"other"}', b'{"model":"a","model":"llama-3.1-8b-instruct"}', b'{ }',
         b'{"m\\u006fdel":"llama-3.1-8b-instruct"}', b'{"model":"llama-3.1-8b-instruct","model":"a"}',
         b'{"model":"' + b"m" * 513 + b'"}', b'"{}"', b'"custom_id"']
    ),
}  # fmt: skip
KEYS = st.sampled_from(
    [*(f'"{name}"'.encode() for name in FIELDS), b'"x"', b'""', rb'"custom\u005fid"', rb'"\ud800"',
     rb'"bod\u0079"', b"x", b"1", b'"a{}b"']
)  # fmt: skip
GAPS = st.sampled_from([b"", b"", b"", b" ", b"\t", b"\r", b"\x0b", b"\xc2\xa0", b"\n"])


@st.composite
def odd_lines(draw: st.DrawFn) -> bytes:
    """Draw a real line with fields changed, added, dropped, repeated or reordered."""
    real = json.loads(draw(st.sampled_from(REAL)))
    pairs = [
        (f'"{name}"'.encode(), json.dumps(real[name], ensure_ascii=draw(st.booleans())).encode())
        for name in FIELDS
    ]
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
        mutation = draw(st.sampled_from(["typical", "odd", "add", "drop", "shuffle", "again"]))
        position = draw(st.integers(0, max(0, len(pairs) - 1)))
        if mutation == "add" or not pairs:
            pairs.insert(position, (draw(KEYS), draw(ODD | DEEP)))
        elif mutation == "odd":
            pairs[position] = (pairs[position][0], draw(ODD | DEEP))
        elif mutation == "typical":
            name = draw(st.sampled_from(FIELDS))
            pairs = [(k, draw(TYPICAL[name]) if k == f'"{name}"'.encode() else v) for k, v in pairs]
        elif mutation == "drop":
            del pairs[position]
        elif mutation == "again":
            pairs.append(pairs[position])
        else:
            pairs = draw(st.permutations(pairs))
    gap = draw(GAPS)
    members = b",".join(key + gap + b":" + gap + value for key, value in pairs)
    return gap + b"{" + gap + members + b"}"


FILES = st.builds(
    lambda start, first, lines, ending, last: start + ending.join([*first, *lines]) + last,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\n", b"\xef\xbb\xbf\xef\xbb\xbf"]),
    st.sampled_from([REAL[:1], REAL[:1], []]),
    st.lists(
        odd_lines() | st.sampled_from([*REAL, b"", b" ", b"{}", b"x" * 3001, b" " * 3001]),
        max_size=16,
    ),
    st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"]),
    st.sampled_from([b"", b"\n", b"\r"]),
)
CUTS = st.lists(st.integers(0, 9000), max_size=10)
ENDPOINT = st.sampled_from([None, "/v1/chat/completions", "/v1/embeddings"])


@settings(max_examples=500)
@given(FILES, CUTS, ENDPOINT)
def test_mutated_structure_matches_reference(
    content: bytes, cuts: list[int], endpoint: str | None
) -> None:
    assert_agreement(content, cuts, endpoint)


EDITS = st.tuples(
    st.integers(0, 2000),
    st.sampled_from([0, 0, 1, 5]),
    st.sampled_from([b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"\x00",
                     b"\xff", b"\xc3", b"\xef\xbb\xbf", rb"\u0000", rb"\ud83d", b"0", b"-", b"e",
                     b"NaN", b" ", b"null", b"\xe2\x80\xa8"])
    | st.binary(max_size=3),
)  # fmt: skip


@settings(max_examples=500)
@given(
    st.lists(st.tuples(st.sampled_from(REAL), st.lists(EDITS, max_size=2)), min_size=1, max_size=3),
    CUTS,
    st.sampled_from([None, "/v1/chat/completions"]),
)
def test_edited_bytes_match_reference(
    lines: list[tuple[bytes, list[tuple[int, int, bytes]]]], cuts: list[int], endpoint: str | None
) -> None:
    content = REAL[-1]
    for line, edits in lines:
        edited = bytearray(line)
        for position, length, replacement in edits:
            at = position % (len(edited) + 1)
            edited[at : at + length] = replacement
        content += b"\n" + edited
    assert_agreement(content, cuts, endpoint)


@settings(max_examples=100)
@given(st.binary(max_size=200), CUTS)
def test_random_bytes_match_reference(content: bytes, cuts: list[int]) -> None:
    assert_agreement(content, cuts, None)


@pytest.mark.parametrize("line", REAL)
def test_real_lines_are_accepted_by_reference(line: bytes) -> None:
    assert len(Reference(None).judge(line).accepted) == 1
