"""`/v1/files`: uploads, downloads and ranges, pages, deletion."""

from __future__ import annotations

import gzip
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.files.index import index_key
from lowtide.objects.store import ObstoreObjects
from tests.http.conftest import MAX_FILE_BYTES, MAX_LINES
from tests.http.forms import BOUNDARY, CONTENT_TYPE, form, line, part, post, upload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.http.conftest import Api
    from tests.worlds import World

DASHES = b"--" + BOUNDARY.encode()


def test_uploaded_file_is_downloaded_unchanged(api: Api) -> None:
    content = line("a") + line("b")
    file = upload(api, content)
    assert file == {
        "id": file["id"], "object": "file", "bytes": len(content), "created_at": file["created_at"],
        "expires_at": file["expires_at"], "filename": "in.jsonl", "purpose": "batch",
        "status": "processed", "status_details": None, "x_lowtide": {"zero_retention": False},
    }  # fmt: skip
    assert api("GET", f"/v1/files/{file['id']}").json == file
    response: Any = api("GET", f"/v1/files/{file['id']}/content")
    assert (response.status_code, response.data) == (200, content)
    assert response.headers["Content-Length"] == str(len(content))
    assert response.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["x-request-id"].startswith("req_")


def test_fields_may_follow_file(api: Api) -> None:
    response = post(
        api, form(part("file", line(), "a"), part("purpose", b"batch"), part("other", b"x"))
    )
    assert response.json["status"] == "processed"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\temp\\\\in.jsonl", "in.jsonl"),
        ("..", ".."),
        ("dir/", "file"),
        ("", "file"),
        ("é.jsonl", "é.jsonl"),
        ("<script>.jsonl", "<script>.jsonl"),
        ("-rf", "-rf"),
    ],
)
def test_filename_is_stripped_of_directories(api: Api, sent: str, expected: str) -> None:
    file = upload(api, filename=sent)
    assert file["filename"] == expected
    key = f"files/{file['id'].removeprefix('file-')}"
    assert api.object_keys() == {key, index_key(key)}


@pytest.mark.parametrize(
    ("disposition", "expected"),
    [
        pytest.param("filename*=UTF-8''na%C3%AFve%20%E2%82%AC.jsonl", "naïve €.jsonl", id="UTF-8"),
        pytest.param("filename*=iso-8859-1'en'%A3.jsonl", "£.jsonl", id="Latin-1, a language"),
        pytest.param(
            "filename=\"plain.jsonl\"; filename*=UTF-8''%C3%A9.jsonl",
            "é.jsonl",
            id="after a plain one",
        ),
        pytest.param(
            "filename*=UTF-8''%C3%A9.jsonl; filename=\"plain.jsonl\"",
            "é.jsonl",
            id="before a plain one",
        ),
        pytest.param("filename*=UTF-8''..%2Fetc%2Fpasswd", "passwd", id="folders"),
        pytest.param(
            "filename*=klingon''%C3%A9; filename=a.jsonl", "a.jsonl", id="unknown charset"
        ),
        pytest.param("filename*=nonsense; filename=a.jsonl", "a.jsonl", id="malformed"),
        pytest.param(
            "filename*=UTF-8''%FF; filename=a.jsonl", "a.jsonl", id="invalid in its charset"
        ),
        pytest.param("filename*=klingon''%C3%A9", "file", id="no usable name"),
        pytest.param("filename=\"; filename*=UTF-8''b\"", "; filename*=UTF-8''b", id="quoted"),
    ],
)
def test_extended_filename_is_preferred(api: Api, disposition: str, expected: str) -> None:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; {disposition}\r\n\r\n"
    response = post(api, form(head.encode() + line() + b"\r\n"))
    assert (response.status_code, response.json.get("filename")) == (200, expected)


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_content_encoding_is_rejected(api: Api, coding: str) -> None:
    response = api(
        "POST",
        "/v1/files",
        data=gzip.compress(form(part("file", line(), "a"))),
        content_type=CONTENT_TYPE,
        headers={"Content-Encoding": coding},
    )
    assert response.status_code == 415
    assert response.json["error"]["code"] == "unsupported_content_encoding"
    assert "Content-Encoding" in response.json["error"]["message"]
    assert api.object_keys() == set()


def test_identity_content_encoding_is_accepted(api: Api) -> None:
    body = form(part("file", line(), "a"))
    headers = {"Content-Encoding": "identity"}
    response = api("POST", "/v1/files", data=body, content_type=CONTENT_TYPE, headers=headers)
    assert response.status_code == 200


def test_gzip_file_is_rejected_with_fix(api: Api) -> None:
    response = post(api, form(part("file", gzip.compress(line()), "in.jsonl.gz")))
    assert response.status_code == 415
    assert (response.json["error"]["param"], response.json["error"]["code"]) == (
        "file",
        "packed_file",
    )
    assert "decompress" in response.json["error"]["message"]
    assert api.object_keys() == set()


@pytest.mark.parametrize(
    ("content", "details"),
    [
        pytest.param(b"", "no requests", id="empty"),
        pytest.param(b"not json\n", "line 1", id="not JSON"),
        pytest.param(line("a") + line("a"), "already used", id="duplicate custom_id"),
        pytest.param(b"\xff\xfe", "UTF-8", id="not UTF-8"),
        pytest.param(
            b"".join(line(str(n)) for n in range(MAX_LINES + 1)),
            f"at most {MAX_LINES}",
            id="too many lines",
        ),
        pytest.param(b"x" * 30_000, "longer than", id="a line too long"),
    ],
)
def test_upload_reports_problem_in_status_details(api: Api, content: bytes, details: str) -> None:
    file = upload(api, content)
    assert file["status"] == "error"
    assert details in file["status_details"]
    assert file["bytes"] == len(content)


GOOD = form(part("purpose", b"batch"), part("file", line(), "a"))

BAD_FORMS = [
    pytest.param(b"", CONTENT_TYPE, 400, id="nothing"),
    pytest.param(GOOD, "application/json", 415, id="not a form"),
    pytest.param(
        form(part("file", gzip.compress(line()), "a.jsonl.gz")), CONTENT_TYPE, 415, id="a gzip file"
    ),
    pytest.param(GOOD, "multipart/form-data", 415, id="no boundary"),
    pytest.param(GOOD, "multipart/form-data; boundary=other", 400, id="another boundary"),
    pytest.param(GOOD, "multipart/mixed; boundary=x", 415, id="another multipart"),
    pytest.param(GOOD[:-6], CONTENT_TYPE, 400, id="cut off at the end"),
    pytest.param(GOOD[: len(GOOD) // 2], CONTENT_TYPE, 400, id="cut off half-way"),
    pytest.param(form(part("purpose", b"batch")), CONTENT_TYPE, 400, id="no file"),
    pytest.param(form(), CONTENT_TYPE, 400, id="no parts"),
    pytest.param(
        form(part("purpose", b"fine-tune"), part("file", line(), "a")), CONTENT_TYPE, 400,
        id="wrong purpose",
    ),
    pytest.param(
        form(part("file", line(), "a"), part("purpose", b"assistants")), CONTENT_TYPE, 400,
        id="wrong purpose, after the file",
    ),
    pytest.param(
        form(part("purpose", b"\xff"), part("file", line(), "a")), CONTENT_TYPE, 400,
        id="purpose not UTF-8",
    ),
    pytest.param(
        form(part("purpose", b"b" * 5000), part("file", line(), "a")), CONTENT_TYPE, 400,
        id="a field too long",
    ),
    pytest.param(
        form(*[part(f"f{n}", b"") for n in range(20)], part("file", line(), "a")), CONTENT_TYPE,
        400, id="too many fields",
    ),
    pytest.param(
        form(part("purpose", b"batch"), part("file", line("a"), "a"), part("file", line("b"), "b")),
        CONTENT_TYPE, 400, id="two files",
    ),
    pytest.param(
        form(part("purpose", b"batch"), part("file", b"x" * (MAX_FILE_BYTES + 1), "a")),
        CONTENT_TYPE, 413, id="a byte too large",
    ),
    pytest.param(
        form(part("purpose", b"batch"), part("file", b"x" * (MAX_FILE_BYTES * 2), "a")),
        CONTENT_TYPE, 413, id="much too large",
    ),
    pytest.param(
        form(part("expires_after[anchor]", b"now"), part("file", line(), "a")), CONTENT_TYPE, 400,
        id="a wrong anchor",
    ),
    pytest.param(DASHES + b"\r\n\r\n\r\n" + DASHES + b"--\r\n", CONTENT_TYPE, 400, id="no headers"),
    pytest.param(
        DASHES + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + DASHES + b"--\r\n",
        CONTENT_TYPE, 400, id="no name",
    ),
    pytest.param(
        DASHES + b"\r\n" + b"A: " + b"b" * 100_000 + b"\r\n\r\nx\r\n" + DASHES + b"--\r\n",
        CONTENT_TYPE, 400, id="endless headers",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "content_type", "status"), BAD_FORMS)
def test_rejected_upload_stores_nothing(
    api: Api, world: World, body: bytes, content_type: str, status: int
) -> None:
    response = post(api, body, content_type)
    assert response.status_code == status, response.text
    assert set(response.json["error"]) == {"message", "type", "param", "code"}
    assert api.object_keys() == set()
    assert world.rows("SELECT 1 FROM files") == []


def test_file_of_max_size_is_accepted(api: Api) -> None:
    content = (line().rstrip().ljust(9_999) + b"\n") * (MAX_FILE_BYTES // 10_000)
    assert upload(api, content)["bytes"] == MAX_FILE_BYTES


@given(st.binary(max_size=300), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_corrupted_form_never_returns_5xx(api: Api, noise: bytes, start: int, end: int) -> None:
    before = api.object_keys()
    response = post(api, GOOD[: min(start, end)] + noise + GOOD[max(start, end) :])
    assert response.status_code in {200, 400}, response.text
    if response.status_code == 400:
        assert api.object_keys() == before


_PARTS = st.lists(
    st.builds(
        part,
        st.sampled_from(
            ["file", "purpose", "expires_after[seconds]", "expires_after[anchor]", "é", ""]
        ),
        st.sampled_from([b"batch", b"created_at", b"3600", b"-1", b"\xff", b"", line(), b"\x00"]),
        st.sampled_from([None, "", "a", "a\\", "\x00"]),
    ),
    max_size=6,
)


@given(_PARTS)
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_random_form_never_returns_5xx(api: Api, parts: list[bytes]) -> None:
    before = api.object_keys()
    response = post(api, form(*parts))
    assert response.status_code in {200, 400}, response.text
    if response.status_code == 400:
        assert api.object_keys() == before


@pytest.mark.parametrize("step", ["write", "close", "record"])
def test_outage_during_upload_leaves_at_most_recorded_orphan(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from lowtide.files.store import FileStore
    from lowtide.objects.store import ObstoreWriter

    def fail(*_: Any, **__: Any) -> None:
        raise Unavailable("away")

    if step == "write":
        monkeypatch.setattr(ObstoreWriter, "write", fail)
    elif step == "close":
        monkeypatch.setattr("lowtide.objects.store._sync", fail)
    else:
        monkeypatch.setattr(FileStore, "add", fail)
    response = post(api, GOOD)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert world.rows("SELECT 1 FROM files") == []
    # An object already renamed into its folder may remain; it is recorded as an orphan.
    orphans = {row.object_key for row in world.rows("SELECT object_key FROM orphan_objects")}
    assert api.object_keys() <= orphans


def test_commit_with_lost_reply_keeps_object(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowtide.files.store import FileStore

    add = FileStore.add

    def commit_then_fail(*arguments: Any) -> None:
        add(*arguments)
        raise Unavailable("the connection was lost")

    monkeypatch.setattr(FileStore, "add", commit_then_fail)
    assert post(api, GOOD).status_code == 503
    (file,) = world.rows("SELECT object_key FROM files")
    assert api.object_keys() == {file.object_key, index_key(file.object_key)}
    assert world.rows("SELECT 1 FROM orphan_objects") == []


CONTENT = b"0123456789" * 10

RANGES = [
    ("bytes=0-9", 206, slice(0, 10)),
    ("bytes=10-19", 206, slice(10, 20)),
    ("bytes=95-", 206, slice(95, 100)),
    ("bytes=99-99", 206, slice(99, 100)),
    ("bytes=90-1000", 206, slice(90, 100)),
    ("bytes=-5", 206, slice(95, 100)),
    ("bytes=-1000", 206, slice(0, 100)),
    ("bytes=0-" + "9" * 18, 206, slice(0, 100)),
    ("bytes=0-" + "9" * 5000, 200, slice(0, 100)),
    ("bytes=-" + "9" * 5000, 200, slice(0, 100)),
    ("bytes=100-", 416, None),
    ("bytes=" + "9" * 18 + "-", 416, None),
    ("bytes=" + "9" * 5000 + "-", 200, slice(0, 100)),
    ("bytes=-0", 416, None),
    ("bytes=9-0", 200, slice(0, 100)),
    ("bytes=0-1,5-6", 200, slice(0, 100)),
    ("bytes=-", 200, slice(0, 100)),
    ("bytes=x", 200, slice(0, 100)),
    ("lines=0-1", 200, slice(0, 100)),
    ("", 200, slice(0, 100)),
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("header", "status", "expected"), RANGES, ids=lambda value: str(value)[:20]
)
def test_range_header_selects_bytes(
    api: Api, method: str, header: str, status: int, expected: slice | None
) -> None:
    file = upload(api, CONTENT)
    response: Any = api(method, f"/v1/files/{file['id']}/content", headers={"Range": header})
    assert response.status_code == status
    if expected is None:
        assert response.headers["Content-Range"] == "bytes */100"
        return
    assert response.headers["Content-Length"] == str(expected.stop - expected.start)
    assert response.data == (CONTENT[expected] if method == "GET" else b"")
    assert response.headers.get("Content-Range") == (
        f"bytes {expected.start}-{expected.stop - 1}/100" if status == 206 else None
    )


def test_missing_object_returns_error_status(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    file = upload(api, CONTENT)
    for key in api.object_keys():
        (api.objects / key).unlink()
    response: Any = api("GET", f"/v1/files/{file['id']}/content")
    assert (response.status_code, response.json["error"]["type"]) == (404, "invalid_request_error")

    def fail(*_: Any) -> Iterator[bytes]:
        yield from ()
        raise Unavailable("The store is away")

    monkeypatch.setattr(ObstoreObjects, "stream", fail)
    assert api("GET", f"/v1/files/{file['id']}/content").status_code == 503


def test_empty_file_has_empty_content(api: Api) -> None:
    file = upload(api, b"")
    response: Any = api("GET", f"/v1/files/{file['id']}/content")
    assert (response.status_code, response.data) == (200, b"")


def test_pages_follow_order_and_purpose(api: Api) -> None:
    ids = [upload(api)["id"] for _ in range(5)]
    first: Any = api("GET", "/v1/files?limit=2").json
    assert [file["id"] for file in first["data"]] == ids[:2:-1]
    assert (first["object"], first["first_id"], first["last_id"], first["has_more"]) == (
        "list", ids[4], ids[3], True,
    )  # fmt: skip
    last: Any = api("GET", f"/v1/files?limit=3&after={first['last_id']}").json
    assert [file["id"] for file in last["data"]] == ids[2::-1]
    assert last["has_more"] is False
    oldest: Any = api("GET", "/v1/files?order=asc&limit=5").json
    assert [file["id"] for file in oldest["data"]] == ids
    assert api("GET", "/v1/files?purpose=batch_output").json == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "limit",
    [
        "0",
        "-1",
        "x",
        "1.5",
        "10001",
        "0" * 9 + "99999",
        "00000000199999",
        "0" * 8 + "1" + "9" * 5000,
        "\u0661",
        " 1",
        "1e3",
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_invalid_limit_is_rejected(api: Api, limit: str) -> None:
    response: Any = api("GET", "/v1/files", query_string={"limit": limit})
    assert (response.status_code, response.json["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize("name", ["purpose", "after", "order", "limit"])
@pytest.mark.parametrize("value", ["%00", "%ff", "%ed%a0%80", "';--", "%F0%9F%8C%8A", "x" * 5000])
def test_odd_argument_never_returns_5xx(api: Api, name: str, value: str) -> None:
    assert api("GET", f"/v1/files?{name}={value}").status_code in {200, 400, 404}


def test_deleted_file_returns_404(api: Api) -> None:
    file = upload(api)
    response: Any = api("DELETE", f"/v1/files/{file['id']}")
    assert response.json == {"id": file["id"], "object": "file", "deleted": True}
    for method in ("GET", "DELETE"):
        assert api(method, f"/v1/files/{file['id']}").status_code == 404
    assert api.object_keys() == set()


def test_deleted_input_keeps_object_while_batch_is_active(api: Api, world: World) -> None:
    file = upload(api)
    created = api("POST", "/v1/batches", json={"input_file_id": file["id"]})
    response: Any = api("DELETE", f"/v1/files/{file['id']}")
    assert (response.status_code, response.json["deleted"]) == (200, True)
    assert api("GET", f"/v1/files/{file['id']}").status_code == 404
    assert api("GET", f"/v1/files/{file['id']}/content").status_code == 404
    assert api("GET", f"/v1/batches/{created.json['id']}").json["input_file_id"] == file["id"]
    rejected: Any = api("POST", "/v1/batches", json={"input_file_id": file["id"]})
    assert (rejected.status_code, rejected.json["error"]["param"]) == (404, "input_file_id")
    assert len(api.object_keys()) == 2
    assert world.value("SELECT count(*) FROM orphan_objects") == 2


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("GET", "/content"), ("DELETE", "")])
def test_foreign_file_returns_404(api: Api, world: World, method: str, tail: str) -> None:
    foreign = world.file(world.tenant("other"))
    response: Any = api(method, f"/v1/files/file-{foreign.id.hex}{tail}")
    assert (response.status_code, response.json["error"]["code"]) == (404, "not_found")
    listed: Any = api("GET", "/v1/files").json
    assert listed["data"] == []
    assert world.value("SELECT count(*) FROM files") == 1
    assert foreign.tenant != DEFAULT_TENANT
