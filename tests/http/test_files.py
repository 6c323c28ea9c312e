"""`/v1/files`: uploads of every kind, contents and ranges, pages, deletions."""

from __future__ import annotations

import gzip
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.objects.store import ObstoreObjects
from tests.http.conftest import MAX_FILE_BYTES, MAX_LINES
from tests.http.forms import BOUNDARY, CONTENT_TYPE, form, line, part, post, uploaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.http.conftest import Api
    from tests.worlds import World

DASHES = b"--" + BOUNDARY.encode()


def test_a_file_comes_back_as_it_was_sent(api: Api) -> None:
    content = line("a") + line("b")
    file = uploaded(api, content)
    assert file == {
        "id": file["id"], "object": "file", "bytes": len(content), "created_at": file["created_at"],
        "expires_at": file["expires_at"], "filename": "in.jsonl", "purpose": "batch",
        "status": "processed", "status_details": None,
    }  # fmt: skip
    assert api("GET", f"/v1/files/{file['id']}").json == file
    answer: Any = api("GET", f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer.data) == (200, content)
    assert answer.headers["Content-Length"] == str(len(content))
    assert answer.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["x-request-id"].startswith("req_")


def test_fields_may_follow_the_file(api: Api) -> None:
    answer = post(
        api, form(part("file", line(), "a"), part("purpose", b"batch"), part("other", b"x"))
    )
    assert answer.json["status"] == "processed"


@pytest.mark.parametrize(
    ("sent", "shown"),
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
def test_a_filename_is_only_a_name(api: Api, sent: str, shown: str) -> None:
    file = uploaded(api, filename=sent)
    assert file["filename"] == shown
    assert api.stored() == {f"files/{file['id'].removeprefix('file-')}"}


@pytest.mark.parametrize(
    ("disposition", "shown"),
    [
        pytest.param("filename*=UTF-8''na%C3%AFve%20%E2%82%AC.jsonl", "naïve €.jsonl", id="UTF-8"),
        pytest.param("filename*=iso-8859-1'en'%A3.jsonl", "£.jsonl", id="Latin-1, a language"),
        pytest.param(
            "filename=\"plain.jsonl\"; filename*=UTF-8''%C3%A9.jsonl",
            "é.jsonl",
            id="beside a plain one",
        ),
        pytest.param(
            "filename*=UTF-8''%C3%A9.jsonl; filename=\"plain.jsonl\"",
            "é.jsonl",
            id="before a plain one",
        ),
        pytest.param("filename*=UTF-8''..%2Fetc%2Fpasswd", "passwd", id="folders"),
        pytest.param(
            "filename*=klingon''%C3%A9; filename=a.jsonl", "a.jsonl", id="no such charset"
        ),
        pytest.param("filename*=nonsense; filename=a.jsonl", "a.jsonl", id="malformed"),
        pytest.param("filename*=UTF-8''%FF; filename=a.jsonl", "a.jsonl", id="not of its charset"),
        pytest.param("filename*=klingon''%C3%A9", "file", id="no name at all"),
        pytest.param("filename=\"; filename*=UTF-8''b\"", "; filename*=UTF-8''b", id="quoted"),
    ],
)
def test_an_encoded_filename_is_preferred(api: Api, disposition: str, shown: str) -> None:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=file; {disposition}\r\n\r\n"
    answer = post(api, form(head.encode() + line() + b"\r\n"))
    assert (answer.status_code, answer.json.get("filename")) == (200, shown)


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_an_encoded_body_is_refused_by_name(api: Api, coding: str) -> None:
    answer = api(
        "POST",
        "/v1/files",
        data=gzip.compress(form(part("file", line(), "a"))),
        content_type=CONTENT_TYPE,
        headers={"Content-Encoding": coding},
    )
    assert answer.status_code == 415
    assert answer.json["error"]["code"] == "unsupported_content_encoding"
    assert "Content-Encoding" in answer.json["error"]["message"]
    assert api.stored() == set()


def test_a_body_may_name_that_it_is_not_encoded(api: Api) -> None:
    body = form(part("file", line(), "a"))
    headers = {"Content-Encoding": "identity"}
    answer = api("POST", "/v1/files", data=body, content_type=CONTENT_TYPE, headers=headers)
    assert answer.status_code == 200


def test_a_packed_file_is_refused_with_the_fix(api: Api) -> None:
    answer = post(api, form(part("file", gzip.compress(line()), "in.jsonl.gz")))
    assert answer.status_code == 415
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == ("file", "packed_file")
    assert "decompress" in answer.json["error"]["message"]
    assert api.stored() == set()


@pytest.mark.parametrize(
    ("content", "details"),
    [
        pytest.param(b"", "no requests", id="empty"),
        pytest.param(b"not json\n", "line 1", id="not JSON"),
        pytest.param(line("a") + line("a"), "already used", id="twice the same custom_id"),
        pytest.param(b"\xff\xfe", "UTF-8", id="not UTF-8"),
        pytest.param(
            b"".join(line(str(n)) for n in range(MAX_LINES + 1)),
            f"at most {MAX_LINES}",
            id="too many lines",
        ),
        pytest.param(b"x" * 30_000, "longer than", id="a line too long"),
    ],
)
def test_problems_are_told_at_once(api: Api, content: bytes, details: str) -> None:
    file = uploaded(api, content)
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
def test_a_bad_upload_leaves_nothing(
    api: Api, world: World, body: bytes, content_type: str, status: int
) -> None:
    answer = post(api, body, content_type)
    assert answer.status_code == status, answer.text
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert api.stored() == set()
    assert world.rows("SELECT 1 FROM files") == []


def test_the_largest_file_is_taken(api: Api) -> None:
    content = (line().rstrip().ljust(9_999) + b"\n") * (MAX_FILE_BYTES // 10_000)
    assert uploaded(api, content)["bytes"] == MAX_FILE_BYTES


@given(st.binary(max_size=300), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_no_bytes_make_an_upload_fail_unanswered(
    api: Api, noise: bytes, start: int, end: int
) -> None:
    before = api.stored()
    answer = post(api, GOOD[: min(start, end)] + noise + GOOD[max(start, end) :])
    assert answer.status_code in {200, 400}, answer.text
    if answer.status_code == 400:
        assert api.stored() == before


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
def test_no_form_fails_unanswered(api: Api, parts: list[bytes]) -> None:
    before = api.stored()
    answer = post(api, form(*parts))
    assert answer.status_code in {200, 400}, answer.text
    if answer.status_code == 400:
        assert api.stored() == before


@pytest.mark.parametrize("step", ["write", "close", "record"])
def test_an_outage_during_an_upload_leaves_nothing(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from lowtide.files.store import FileStore
    from lowtide.objects.store import ObstoreWriter

    def away(*_: Any, **__: Any) -> None:
        raise Unavailable("away")

    if step == "write":
        monkeypatch.setattr(ObstoreWriter, "write", away)
    elif step == "close":
        monkeypatch.setattr("lowtide.objects.store._sync", away)
    else:
        monkeypatch.setattr(FileStore, "add", away)
    answer = post(api, GOOD)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert world.rows("SELECT 1 FROM files") == []
    # A folder's object may stay once it is in place; it is noted as a stray then.
    noted = {row.object_key for row in world.rows("SELECT object_key FROM stray_objects")}
    assert api.stored() <= noted


def test_a_commit_that_was_not_answered_keeps_the_object(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowtide.files.store import FileStore

    add = FileStore.add

    def unanswered(*arguments: Any) -> None:
        add(*arguments)
        raise Unavailable("the connection was lost")

    monkeypatch.setattr(FileStore, "add", unanswered)
    assert post(api, GOOD).status_code == 503
    (file,) = world.rows("SELECT object_key FROM files")
    assert api.stored() == {file.object_key}
    assert world.rows("SELECT 1 FROM stray_objects") == []


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
@pytest.mark.parametrize(("wanted", "status", "part_"), RANGES, ids=lambda value: str(value)[:20])
def test_ranges(api: Api, method: str, wanted: str, status: int, part_: slice | None) -> None:
    file = uploaded(api, CONTENT)
    answer: Any = api(method, f"/v1/files/{file['id']}/content", headers={"Range": wanted})
    assert answer.status_code == status
    if part_ is None:
        assert answer.headers["Content-Range"] == "bytes */100"
        return
    assert answer.headers["Content-Length"] == str(part_.stop - part_.start)
    assert answer.data == (CONTENT[part_] if method == "GET" else b"")
    assert answer.headers.get("Content-Range") == (
        f"bytes {part_.start}-{part_.stop - 1}/100" if status == 206 else None
    )


def test_a_lost_object_is_told_before_the_answer_begins(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = uploaded(api, CONTENT)
    for key in api.stored():
        (api.objects / key).unlink()
    answer: Any = api("GET", f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer.json["error"]["type"]) == (404, "invalid_request_error")

    def away(*_: Any) -> Iterator[bytes]:
        yield from ()
        raise Unavailable("The store is away")

    monkeypatch.setattr(ObstoreObjects, "stream", away)
    assert api("GET", f"/v1/files/{file['id']}/content").status_code == 503


def test_an_empty_file_has_an_empty_content(api: Api) -> None:
    file = uploaded(api, b"")
    answer: Any = api("GET", f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer.data) == (200, b"")


def test_pages(api: Api) -> None:
    ids = [uploaded(api)["id"] for _ in range(5)]
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
def test_limits_are_bounded(api: Api, limit: str) -> None:
    answer: Any = api("GET", "/v1/files", query_string={"limit": limit})
    assert (answer.status_code, answer.json["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize("name", ["purpose", "after", "order", "limit"])
@pytest.mark.parametrize("value", ["%00", "%ff", "%ed%a0%80", "';--", "%F0%9F%8C%8A", "x" * 5000])
def test_no_argument_fails_unanswered(api: Api, name: str, value: str) -> None:
    assert api("GET", f"/v1/files?{name}={value}").status_code in {200, 400, 404}


def test_a_deleted_file_is_gone(api: Api) -> None:
    file = uploaded(api)
    answer: Any = api("DELETE", f"/v1/files/{file['id']}")
    assert answer.json == {"id": file["id"], "object": "file", "deleted": True}
    for method in ("GET", "DELETE"):
        assert api(method, f"/v1/files/{file['id']}").status_code == 404
    assert api.stored() == set()


def test_the_bytes_of_a_deleted_file_stay_while_a_batch_reads_them(api: Api, world: World) -> None:
    file = uploaded(api)
    created = api("POST", "/v1/batches", json={"input_file_id": file["id"]})
    answer: Any = api("DELETE", f"/v1/files/{file['id']}")
    assert (answer.status_code, answer.json["deleted"]) == (200, True)
    assert api("GET", f"/v1/files/{file['id']}").status_code == 404
    assert api("GET", f"/v1/files/{file['id']}/content").status_code == 404
    assert api("GET", f"/v1/batches/{created.json['id']}").json["input_file_id"] == file["id"]
    again: Any = api("POST", "/v1/batches", json={"input_file_id": file["id"]})
    assert (again.status_code, again.json["error"]["param"]) == (404, "input_file_id")
    assert len(api.stored()) == 1
    assert world.value("SELECT count(*) FROM stray_objects") == 1


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("GET", "/content"), ("DELETE", "")])
def test_another_tenants_file_is_not_there(api: Api, world: World, method: str, tail: str) -> None:
    foreign = world.file(world.tenant("other"))
    answer: Any = api(method, f"/v1/files/file-{foreign.id.hex}{tail}")
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "not_found")
    listed: Any = api("GET", "/v1/files").json
    assert listed["data"] == []
    assert world.value("SELECT count(*) FROM files") == 1
    assert foreign.tenant != DEFAULT_TENANT
