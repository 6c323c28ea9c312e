"""`/v1/files/{id}/content`: whole, or one byte range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.features import Area, proves
from tests.conformance.lines import requests
from tests.conformance.shapes import check_error

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.server import Official, Server

DATA = requests(5)
SIZE = len(DATA)


@pytest.fixture(scope="module")
def path(server: Server) -> str:
    """The path of a file's content."""
    return f"/v1/files/{server.upload(DATA)['id']}/content"


def _id(path: str) -> str:
    return path.split("/")[3]


@proves(Area.CONTENT, "`files.content`")
def test_content_is_returned(official: Official, path: str) -> None:
    content = official(lambda client: client.files.content(_id(path)))
    assert content.content == DATA
    assert content.text == DATA.decode()


@proves(Area.CONTENT, "Streaming to a file")
def test_content_is_streamed_to_file(server: Server, path: str, tmp_path: Path) -> None:
    target = tmp_path / "content.jsonl"
    with (
        server.sync.files.with_streaming_response.content(_id(path)) as response,
        target.open("wb") as out,
    ):
        for chunk in response.iter_bytes():
            out.write(chunk)
    assert target.read_bytes() == DATA


@proves(Area.CONTENT, "Headers: type, length, entity tag, ranges accepted")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_headers_describe_content(server: Server, path: str, method: str) -> None:
    response = server.http.request(method, path)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/jsonl"
    assert response.headers["Content-Length"] == str(SIZE)
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["ETag"].strip('"')
    assert response.content == (DATA if method == "GET" else b"")


@proves(Area.CONTENT, "`Range`: one byte range of RFC 9110")
@pytest.mark.parametrize(
    ("range_", "first", "last"),
    [
        pytest.param("bytes=0-0", 0, 0, id="first-byte"),
        pytest.param("bytes=5-9", 5, 9, id="middle"),
        pytest.param("bytes=100-", 100, SIZE - 1, id="open-end"),
        pytest.param("bytes=-10", SIZE - 10, SIZE - 1, id="suffix"),
        pytest.param("bytes=-99999", 0, SIZE - 1, id="suffix-longer-than-the-file"),
        pytest.param("bytes=5-99999", 5, SIZE - 1, id="end-beyond-the-file"),
    ],
)
def test_range_returns_partial_content(
    server: Server, path: str, range_: str, first: int, last: int
) -> None:
    response = server.http.get(path, headers={"Range": range_})
    assert response.status_code == 206
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/{SIZE}"
    assert response.content == DATA[first : last + 1]
    head = server.http.head(path, headers={"Range": range_})
    assert (head.status_code, head.content) == (206, b"")
    assert head.headers["Content-Range"] == response.headers["Content-Range"]
    assert head.headers["Content-Length"] == response.headers["Content-Length"]


@proves(Area.CONTENT, "`Range`: one byte range of RFC 9110")
@pytest.mark.parametrize(
    "range_", [f"bytes={SIZE}-", "bytes=-0"], ids=["beyond-the-file", "empty-suffix"]
)
def test_unsatisfiable_range_returns_416(server: Server, path: str, range_: str) -> None:
    response = server.http.get(path, headers={"Range": range_})
    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{SIZE}"
    assert check_error(response.json())["code"] == "range_not_satisfiable"


@proves(Area.CONTENT, "`Range`: one byte range of RFC 9110")
@pytest.mark.parametrize(
    "range_",
    ["bytes=9-5", "lines=0-1", "bytes=a-b", "bytes=0-1,3-4", f"bytes={'9' * 5000}-"],
    ids=["backwards", "other-unit", "not-numeric", "several", "huge"],
)
def test_invalid_range_is_ignored(server: Server, path: str, range_: str) -> None:
    response = server.http.get(path, headers={"Range": range_})
    assert (response.status_code, response.content) == (200, DATA)


@proves(Area.CONTENT, "`If-Range`: a download goes on only in the same file")
def test_if_range_needs_same_file(server: Server, path: str) -> None:
    tag = server.http.head(path).headers["ETag"]
    range_ = {"Range": "bytes=0-0"}
    same = server.http.get(path, headers={**range_, "If-Range": tag})
    other = server.http.get(path, headers={**range_, "If-Range": '"another"'})
    assert (same.status_code, other.status_code) == (206, 200)
    assert other.content == DATA
