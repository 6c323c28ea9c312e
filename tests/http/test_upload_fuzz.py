"""Fuzzing of uploads: no mutated form or file causes a 5xx, and rejected ones leave nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowtide.files.index import index_key
from lowtide.files.lines import Limits, LineReader
from lowtide.http import bodies
from tests.http.conftest import MAX_FILE_BYTES, MAX_LINES
from tests.http.forms import BOUNDARY, CONTENT_TYPE, form, line, part, post

if TYPE_CHECKING:
    from tests.http.conftest import Api
    from tests.worlds import World

QUESTIONS = Path(__file__).parents[2] / "examples" / "questions.jsonl"
REAL = QUESTIONS.read_bytes().splitlines()[:4]
DASHES = b"--" + BOUNDARY.encode()
FUZZ = settings(max_examples=150, suppress_health_check=list(HealthCheck))

NOISE = st.sampled_from(
    [b"", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"--", DASHES, DASHES + b"--", b"\r\n" + DASHES,
     b"\r\n" + DASHES + b"\r\n", b"\r\n" + DASHES + b"--\r\n", b"\r\n-", b'"', b"\\", b"\x00", b"\xff",
     b"\xef\xbb\xbf", b"{", b"Content-Length: 3\r\n", b"Content-Length: -1\r\n", b": ", b";", b"=",
     b"Content-Type: text/plain; charset=utf-16\r\n", b"Content-Disposition: form-data\r\n",
     b"Content-Transfer-Encoding: base64\r\n", b'; filename*=UTF-8\'\'%ff', b"x" * 5000, b"\x85"]
) | st.binary(max_size=4)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 6), NOISE), max_size=3)
FILES = st.builds(
    lambda lines, ending, last: ending.join(lines) + last,
    st.lists(st.sampled_from([*REAL, b"", b"{}", b"\xff", b"[" * 500, line("a"), line("b")]), max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\r\n-", b"\r\n--"]),
    st.sampled_from([b"", b"\n", b"\r", b"\r\n", b"\r\n--", b"\r\n" + DASHES[:-1]]),
)  # fmt: skip
PARTS = st.builds(
    part,
    st.sampled_from(["purpose", "expires_after[anchor]", "expires_after[seconds]", "é", "", 'a"b']),
    st.sampled_from([b"batch", b"created_at", b"3600", "é".encode() * 9, b"\xff", b"", b"\x00"]),
    st.sampled_from([None, None, None, "a"]),
)


def _edited(body: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    edited = bytearray(body)
    for position, length, noise in edits:
        at = position % (len(edited) + 1)
        edited[at : at + length] = noise
    return bytes(edited)


def _contents(body: bytes) -> list[bytes]:
    """Return the bytes between the headers and the end of each part.

    As in the library, an empty part has its own line end before the next boundary.
    """
    text, contents = b"\r\n" + body, []
    end = text.find(b"\r\n" + DASHES)
    while end >= 0 and (start := text.find(b"\r\n\r\n", end) + 4) > 3:
        end = text.find(b"\r\n" + DASHES, start)
        contents.append(text[start:end])
    return contents


def _check_outcome(api: Api, world: World, response: Any, body: bytes) -> None:
    """Check that the response matches the stored rows and objects."""
    rows = world.rows("SELECT id, bytes, lines, status, object_key FROM files")
    if response.status_code != 200:
        assert response.status_code in {400, 413}, response.text
        assert set(response.json["error"]) == {"message", "type", "param", "code"}
        assert (rows, api.object_keys()) == ([], set())
        return
    (row,) = rows
    index = set() if row.status == "error" else {index_key(row.object_key)}
    assert api.object_keys() == {row.object_key} | index
    content = (api.objects / row.object_key).read_bytes()
    assert content in _contents(body)
    reader = LineReader(Limits(max_lines=MAX_LINES, max_line_bytes=20_000))
    reader.feed(content)
    reader.finish()
    assert (row.bytes, row.lines) == (len(content), reader.requests)
    assert row.status == ("error" if reader.problems else "processed")
    assert response.json["status"] == row.status


def _post_chunked(api: Api, body: io.IOBase) -> Any:
    """Send a body of unknown length, in the environment that gunicorn gives to a chunked one."""
    environ = {
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }
    return api("POST", "/v1/files", content_type=CONTENT_TYPE, environ_overrides=environ)


def _clear(api: Api, world: World) -> None:
    for key in api.object_keys():
        (api.objects / key).unlink()
    with world.database.engine("owner").begin() as connection:
        connection.exec_driver_sql("TRUNCATE files CASCADE")


@FUZZ
@given(FILES, st.lists(PARTS, max_size=2), st.lists(PARTS, max_size=2), EDITS, st.integers(1, 400))
def test_mutated_form_is_rejected_or_stored_whole(
    api: Api,
    world: World,
    content: bytes,
    before: list[bytes],
    after: list[bytes],
    edits: list[tuple[int, int, bytes]],
    chunk: int,
) -> None:
    _clear(api, world)
    body = _edited(form(*before, part("file", content, "in.jsonl"), *after), edits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_CHUNK_BYTES", chunk)
        response = post(api, body)
    _check_outcome(api, world, response, body)


@FUZZ
@given(st.integers(0, 2000), st.sampled_from([-3, 0, 7]), st.booleans())
def test_truncated_form_is_rejected(
    api: Api, world: World, end: int, missing: int, is_chunked: bool
) -> None:
    _clear(api, world)
    whole = form(part("file", b"\n".join(REAL), "in.jsonl"), part("purpose", b"batch"))
    body = whole[: end % (len(whole) - 3)]
    if is_chunked:
        response = _post_chunked(api, io.BytesIO(body))
    else:
        length = {"CONTENT_LENGTH": str(max(0, len(body) + missing))}
        response = api(
            "POST", "/v1/files", data=body, content_type=CONTENT_TYPE, environ_overrides=length
        )
    assert response.status_code == 400
    _check_outcome(api, world, response, body)


class _Broken(io.RawIOBase):
    """A body that arrives in part and then fails, as a server's reader may."""

    def __init__(self, body: bytes, error: Exception) -> None:
        self._pieces: list[bytes | Exception] = [body, error]

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:  # noqa: ARG002
        piece = self._pieces.pop(0) if self._pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece


@pytest.mark.parametrize("error", [OSError("reset"), RuntimeError("bad chunk")], ids=repr)
def test_failing_body_stores_nothing(api: Api, world: World, error: Exception) -> None:
    body = form(part("file", b"\n".join(REAL), "in.jsonl"))[:-20]
    response = _post_chunked(api, _Broken(body, error))
    assert response.status_code == 400
    _check_outcome(api, world, response, body)


class _Endless(io.RawIOBase):
    """An endless body of unknown length: a start, then the same piece forever."""

    def __init__(self, start: bytes, repeat: bytes) -> None:
        self._start, self._repeat = start, repeat
        self.sent = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece, self._start = self._start or self._repeat * (size // len(self._repeat)), b""
        self.sent += len(piece)
        return piece


@pytest.mark.parametrize(
    ("start", "repeat"),
    [
        pytest.param(b"", b"preamble\r\n", id="preamble"),
        pytest.param(form(part("file", line(), "a")), b"epilogue\r\n", id="epilogue"),
        pytest.param(form(part("file", line(), "a"))[:-10], b"x", id="file"),
        pytest.param(DASHES + b"\r\nContent-Disposition: form-data; ", b"x", id="header"),
        pytest.param(DASHES + b"\r\n", b"A: b\r\n", id="headers"),
        pytest.param(form(part("purpose", b"batch"))[:-10], b"x", id="field"),
        pytest.param(b"", form(part("purpose", b"batch"))[:-7], id="parts"),
    ],
)
def test_endless_form_is_rejected_early(
    api: Api, world: World, start: bytes, repeat: bytes
) -> None:
    body = _Endless(start, repeat)
    response = _post_chunked(api, body)
    assert response.status_code in {400, 413}
    assert body.sent < MAX_FILE_BYTES + (1 << 20)
    _check_outcome(api, world, response, b"")
