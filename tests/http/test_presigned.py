"""Presigned uploads and downloads: the bytes go between the client and a real S3 server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI
from werkzeug.serving import make_server

from lowtide.batches.model import BatchStatus
from lowtide.cli.client import stream
from lowtide.core.errors import NotFound
from lowtide.core.ids import new_id, now, parse_batch_id, parse_file_id
from lowtide.events.publisher import Publisher
from lowtide.files.lines import Limits
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.presigned import Presigner
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.split import Splitter
from lowtide.pipeline.split_store import SplitStore
from lowtide.uploads import presigned
from lowtide.uploads.presigned import PresignedUploads
from tests.fleets.single import SINGLE
from tests.http.conftest import MAX_LINES
from tests.http.forms import form, line, part, post, upload
from tests.http.test_audit import _audit
from tests.http.test_uploads import _age, _cancel, _complete, _create, _error, _rows
from tests.objects.conftest import s3_endpoint, s3_environment
from tests.worker.workers import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.http.conftest import Api
    from tests.worlds import World

__all__ = ["s3_endpoint", "s3_environment"]

LINES = [line(f"line-{number}") for number in range(9)]
CONTENT = b"".join(LINES)
PART = len(CONTENT) // 4
DAY = 24 * 3600


@dataclass
class Bucket:
    """A prefix of a bucket that all functions use."""

    url: str
    objects: JoinedObjects
    signer: Presigner

    def keys(self, folder: str) -> set[str]:
        return set(self.signer.sizes(folder))


@pytest.fixture
def bucket(
    api: Api,
    s3_environment: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Bucket:
    """A bucket as the object store of every function, with small parts."""
    url = f"s3://bucket/{tmp_path.name}"
    objects = JoinedObjects(ObstoreObjects(url))
    monkeypatch.setattr(presigned, "MAX_PART_BYTES", PART)
    _settings(api, monkeypatch, object_store_url=url)
    for function in ("upload", "read"):
        monkeypatch.setattr(api.app(function), "objects", objects)
    return Bucket(url, objects, Presigner(url))


def _settings(api: Api, patch: pytest.MonkeyPatch, **settings: Any) -> None:
    for function in ("upload", "read"):
        api.override(patch, function, **settings)


def _new(api: Api, size: int = len(CONTENT), **changes: Any) -> dict[str, Any]:
    return _create(api, size, transfer="presigned", **changes)


def _send(
    url: str, data: bytes = b"", method: str = "PUT", headers: Mapping[str, str] | None = None
) -> bytes:
    response = httpx.request(method, url, content=data, headers=headers)
    response.raise_for_status()
    return response.content


def _put(created: Mapping[str, Any], content: bytes = CONTENT) -> None:
    """Send each part to its URL."""
    start = 0
    for each in created["x_lowtide"]["parts"]:
        _send(each["url"], content[start : start + each["bytes"]], each["method"], each["headers"])
        start += each["bytes"]
    assert start == len(content)


def _file(api: Api, content: bytes = CONTENT) -> dict[str, Any]:
    created = _new(api, len(content))
    _put(created, content)
    response = _complete(api, created["id"], [])
    assert response.status_code == 200, response.text
    file: dict[str, Any] = response.json["file"]
    return file


def _sweep(bucket: Bucket, world: World) -> None:
    keys = world.ticks.orphans(200).keys
    bucket.objects.delete(keys)
    world.ticks.forget_orphans(keys)


def test_upload_has_a_url_for_each_part(api: Api, bucket: Bucket) -> None:
    created = _new(api)
    assert created["expires_at"] == created["created_at"] + DAY
    extension = created["x_lowtide"]
    parts = extension["parts"]
    assert extension["transfer"] == "presigned"
    assert [each["bytes"] for each in parts] == [PART] * 4 + [len(CONTENT) - 4 * PART]
    assert {each["expires_at"] for each in parts} == {created["expires_at"]}
    assert all(each["method"] == "PUT" and each["headers"] == {} for each in parts)
    folder = f"{urlsplit(bucket.url).path}/parts/{created['id'].removeprefix('upload_')}"
    for number, each in enumerate(parts, 1):
        assert urlsplit(each["url"]).path == f"/bucket{folder}/{number:05}"
        (valid,) = parse_qs(urlsplit(each["url"]).query)["X-Amz-Expires"]
        assert DAY - 60 <= int(valid) <= DAY


def test_file_has_the_bytes_that_the_client_sent_to_the_store(
    api: Api, bucket: Bucket, world: World
) -> None:
    created = _new(api, filename="large.jsonl", expires_after=None)
    _put(created)
    ids = [each["id"] for each in created["x_lowtide"]["parts"]]
    completed = _complete(api, created["id"], ids).json
    file = completed["file"]
    assert completed["status"] == "completed"
    assert "x_lowtide" not in completed
    assert file["status"] == "uploaded"
    assert (file["bytes"], file["filename"]) == (len(CONTENT), "large.jsonl")
    content = api("GET", f"/v1/files/{file['id']}/content")
    assert content.data == CONTENT
    assert content.headers["ETag"] == f'"{file["id"].removeprefix("file-")}"'
    ranged = api(
        "GET", f"/v1/files/{file['id']}/content", headers={"Range": f"bytes={PART - 3}-{PART + 2}"}
    )
    assert ranged.data == CONTENT[PART - 3 : PART + 3]
    assert _audit(world)[0] == ("files.create", file["id"])
    assert bucket.keys("parts") == set()
    assert _complete(api, created["id"], []).json == completed
    assert api("DELETE", f"/v1/files/{file['id']}").status_code == 200
    assert bucket.keys("files") | bucket.keys("joined") == set()


@pytest.mark.usefixtures("bucket")
def test_upload_function_receives_no_byte_of_the_file(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("read or written by a function")

    for name in ("open_writer", "stream", "read_ranges"):
        monkeypatch.setattr(ObstoreObjects, name, refuse)
    created = _new(api, PART)
    _put(created, CONTENT[:PART])
    file = _complete(api, created["id"], []).json["file"]
    signed = api("GET", f"/v1/files/{file['id']}/content?presign=60").json
    assert [_send(each["url"], method="GET") for each in signed["pieces"]] == [CONTENT[:PART]]


def test_batch_of_a_presigned_file_is_split(api: Api, bucket: Bucket, world: World) -> None:
    file = _file(api)
    response = api(
        "POST",
        "/v1/batches",
        json={
            "input_file_id": file["id"],
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
        },
    )
    assert response.status_code == 200, response.text
    batch = parse_batch_id(response.json["id"])
    assert batch is not None
    splits = SplitStore(world.own_engine("worker"), new_id=new_id)
    publisher = Publisher(Sink(), world.outbox)
    Splitter(splits, bucket.objects, Limits(50, 20_000), SINGLE, publisher).split(batch)
    assert world.row(batch).status == BatchStatus.IN_PROGRESS
    assert world.lines("queue", batch) == list(range(1, len(LINES) + 1))


@pytest.mark.usefixtures("bucket")
def test_requests_count_as_the_most_that_the_size_allows_until_they_are_read(
    api: Api, world: World
) -> None:
    shortest = b'{"custom_id":"a","method":"POST","url":"/v1/responses","body":{}}'
    small, large = _file(api, shortest), _file(api, shortest * 100)
    lines = {row.bytes: row.lines for row in world.rows("SELECT bytes, lines FROM files")}
    assert lines == {small["bytes"]: 2, large["bytes"]: MAX_LINES}
    body = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    limit = MAX_LINES - 1
    _rows(world, "UPDATE tenants SET max_queued_lines = :limit", limit=limit)
    try:
        refused = api("POST", "/v1/batches", json=body | {"input_file_id": large["id"]})
        assert refused.status_code == 400
        assert str(MAX_LINES) in refused.json["error"]["message"]
        accepted = api("POST", "/v1/batches", json=body | {"input_file_id": small["id"]})
        assert accepted.status_code == 200
    finally:
        # Emptying the database leaves the tenant.
        _rows(world, "UPDATE tenants SET max_queued_lines = NULL")


@pytest.mark.usefixtures("bucket")
def test_urls_are_not_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="lowtide")
    file = _file(api)
    assert api("GET", f"/v1/files/{file['id']}/content?presign=60").status_code == 200
    assert "file.stored" in caplog.text
    assert "http" not in caplog.text


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1])
@pytest.mark.usefixtures("bucket")
def test_any_size_is_cut_into_parts(api: Api, size: int) -> None:
    file = _file(api, b"x" * size)
    content = api("GET", f"/v1/files/{file['id']}/content")
    assert content.data == b"x" * size
    assert file["bytes"] == size


@pytest.mark.usefixtures("bucket")
def test_an_upload_has_at_most_ten_thousand_parts(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presigned, "MAX_PART_BYTES", 1)
    monkeypatch.setattr(presigned, "MAX_PARTS", 100)
    parts = _new(api, 1234)["x_lowtide"]["parts"]
    assert [each["bytes"] for each in parts] == [13] * 94 + [12]


def _sent(api: Api) -> tuple[dict[str, Any], list[str], list[str]]:
    created = _new(api)
    parts = created["x_lowtide"]["parts"]
    return created, [each["id"] for each in parts], [each["url"] for each in parts]


def test_missing_part_is_named(api: Api, bucket: Bucket) -> None:
    created, ids, urls = _sent(api)
    for url in urls[:3]:
        _send(url, b"x" * PART)
    message = _error(_complete(api, created["id"], []), 400, "part_ids")
    assert ids[3] in message
    assert "not arrived" in message
    assert bucket.keys("files") == set()


@pytest.mark.usefixtures("bucket")
def test_part_of_another_size_is_refused(
    api: Api,
) -> None:
    created, ids, urls = _sent(api)
    _put(created)
    _send(urls[1], b"x" * (PART + 1))
    message = _error(_complete(api, created["id"], []), 400, "part_ids")
    assert f"{ids[1]!r} has {PART + 1} bytes, not {PART}" in message
    _send(urls[1], CONTENT[PART : 2 * PART])
    assert _complete(api, created["id"], []).status_code == 200


@pytest.mark.usefixtures("bucket")
def test_parts_are_all_and_in_order(
    api: Api,
) -> None:
    created, ids, _ = _sent(api)
    _put(created)
    for names in (ids[:-1], ids[::-1], [*ids, ids[0]]):
        assert "in their order" in _error(_complete(api, created["id"], names), 400, "part_ids")
    md5 = _complete(api, created["id"], ids, md5="0" * 32)
    assert "Content-MD5" in _error(md5, 400, "md5")


@pytest.mark.usefixtures("bucket")
def test_part_through_the_api_is_refused(
    api: Api,
) -> None:
    created = _new(api)
    response = post(
        api, form(part("data", b"x", "upload")), path=f"/v1/uploads/{created['id']}/parts"
    )
    assert "to their URLs" in _error(response, 400, "upload_id")


@pytest.mark.usefixtures("bucket")
def test_url_grants_one_method_on_one_object(
    api: Api,
) -> None:
    _, _, urls = _sent(api)
    _send(urls[0], b"x" * PART)
    file = _file(api)
    signed = api("GET", f"/v1/files/{file['id']}/content?presign=60").json["pieces"]
    query = urlsplit(urls[0]).query
    for url, method in (
        (urls[0], "GET"),
        (urls[0], "DELETE"),
        (f"{urls[1].partition('?')[0]}?{query}", "PUT"),
        (signed[0]["url"], "PUT"),
        (signed[0]["url"], "DELETE"),
    ):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            _send(url, b"other", method)
        assert refused.value.response.status_code == 403


def test_a_url_cannot_change_a_completed_file(api: Api, bucket: Bucket, world: World) -> None:
    created, _, urls = _sent(api)
    _put(created)
    file = _complete(api, created["id"], []).json["file"]
    _send(urls[0], b"y" * PART)
    assert api("GET", f"/v1/files/{file['id']}/content").data == CONTENT
    _age(world, DAY + 3601)
    _rows(world, "UPDATE files SET expires_at = now() + interval '1 day'")
    _sweep(bucket, world)
    assert bucket.keys("parts") == set()
    assert api("GET", f"/v1/files/{file['id']}/content").data == CONTENT


def test_cancelled_upload_leaves_no_object(api: Api, bucket: Bucket, world: World) -> None:
    created, _, urls = _sent(api)
    _put(created)
    assert _cancel(api, created["id"]).json["status"] == "cancelled"
    assert bucket.keys("parts") == set()
    _send(urls[0], b"late")
    _age(world, DAY)
    _sweep(bucket, world)
    assert len(bucket.keys("parts")) == 1, "a URL is valid as long as its object is swept later"
    _age(world, 3601)
    _sweep(bucket, world)
    assert bucket.keys("parts") == set()
    assert world.rows("SELECT * FROM orphan_objects") == []


def test_expired_upload_leaves_no_object(api: Api, bucket: Bucket, world: World) -> None:
    created = _new(api)
    _put(created)
    _age(world, DAY)
    assert "expired" in _error(_complete(api, created["id"], []), 409, "upload_id")
    _age(world, 3601)
    _sweep(bucket, world)
    assert bucket.keys("parts") == set()


@pytest.mark.parametrize("step", ["copy", "join", "complete", "remove"])
def test_completion_that_died_leaves_nothing_and_can_be_repeated(
    api: Api, bucket: Bucket, world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        """The end of the process."""

    owner: Any = {
        "copy": Presigner,
        "join": JoinedObjects,
        "complete": type(api.app("upload").services.uploads._uploads),
        "remove": PresignedUploads,
    }[step]
    real = getattr(owner, step)

    def die(self: Any, *arguments: Any) -> None:
        if step == "copy":
            real(self, *[pairs[:2] for pairs in arguments])
        raise Killed

    created = _new(api)
    _put(created)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, die)
        with pytest.raises(Killed):
            _complete(api, created["id"], [])
    file = _complete(api, created["id"], []).json["file"]
    assert api("GET", f"/v1/files/{file['id']}/content").data == CONTENT
    _age(world, DAY + 3601)
    _sweep(bucket, world)
    assert bucket.keys("parts") == set()
    assert len(bucket.keys("files")) == 5
    assert len(bucket.keys("joined")) == 1
    assert api("GET", f"/v1/files/{file['id']}/content").data == CONTENT


@pytest.mark.usefixtures("bucket")
def test_completions_at_once_make_one_file(api: Api, world: World) -> None:
    created = _new(api)
    _put(created)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: _complete(api, created["id"], []), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json["file"]["id"] for answer in answers}) == 1
    assert len(world.rows("SELECT * FROM files")) == 1


def test_store_that_cannot_sign_says_what_to_do(api: Api) -> None:
    body = {
        "bytes": 7,
        "filename": "in.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "batch",
    }
    response = api("POST", "/v1/uploads", json={**body, "transfer": "presigned"})
    assert "send the bytes to the API" in _error(response, 400, "transfer")
    response = api("POST", "/v1/uploads", json={**body, "transfer": "pigeon"})
    _error(response, 400, "transfer")
    file = upload(api, CONTENT)
    response = api("GET", f"/v1/files/{file['id']}/content?presign=60")
    assert "file://" in _error(response, 400, "presign")


@pytest.mark.parametrize("value", ["0", "604801", "x", "-1"])
@pytest.mark.usefixtures("bucket")
def test_validity_of_a_url_has_limits(api: Api, value: str) -> None:
    file = upload(api, CONTENT)
    response = api("GET", f"/v1/files/{file['id']}/content?presign={value}")
    _error(response, 400, "presign")


@pytest.mark.usefixtures("bucket")
def test_presigned_download_has_a_url_for_each_piece(api: Api, world: World) -> None:
    file = _file(api)
    before = int(now().timestamp())
    response = api("GET", f"/v1/files/{file['id']}/content?presign=600")
    signed = response.json
    assert response.headers["Cache-Control"] == "no-store"
    assert before + 600 <= signed["expires_at"] <= before + 605
    assert [each["bytes"] for each in signed["pieces"]] == [PART] * 4 + [len(CONTENT) - 4 * PART]
    assert b"".join(_send(each["url"], method="GET") for each in signed["pieces"]) == CONTENT
    assert sorted(_audit(world)) == [("files.create", file["id"]), ("files.download", file["id"])]
    plain = upload(api, CONTENT)
    (piece,) = api("GET", f"/v1/files/{plain['id']}/content?presign=600").json["pieces"]
    assert _send(piece["url"], method="GET") == CONTENT


def test_urls_are_signed_for_the_address_that_clients_reach(
    api: Api, bucket: Bucket, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = s3_endpoint.replace("127.0.0.1", "localhost")
    _settings(api, monkeypatch, object_store_url=bucket.url, object_store_public_url=public)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    created = _new(api)
    assert all(each["url"].startswith(public) for each in created["x_lowtide"]["parts"])
    _put(created)
    file = _complete(api, created["id"], []).json["file"]
    pieces = api("GET", f"/v1/files/{file['id']}/content?presign=60").json["pieces"]
    assert all(each["url"].startswith(public) for each in pieces)
    assert b"".join(_send(each["url"], method="GET") for each in pieces) == CONTENT
    moved = pieces[0]["url"].replace(public, s3_endpoint)
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        _send(moved, method="GET")


def test_download_is_a_redirect_where_a_file_is_one_object(
    api: Api, bucket: Bucket, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(api, monkeypatch, object_store_url=bucket.url, presigned_downloads=True)
    file, joined = upload(api, CONTENT), _file(api)
    path = f"/v1/files/{file['id']}/content"
    response = api("GET", path)
    assert response.status_code == 302
    assert response.headers["Cache-Control"] == "no-store"
    assert response.data == b""
    assert _send(response.headers["Location"], method="GET") == CONTENT
    assert ("files.download", file["id"]) in _audit(world)
    assert api("HEAD", path).status_code == 200
    conditional = {"Range": "bytes=0-1", "If-Range": '"other"'}
    assert api("GET", path, headers=conditional).data == CONTENT
    assert api("GET", f"/v1/files/{joined['id']}/content").data == CONTENT


@pytest.fixture
def read_url(api: Api) -> Iterator[str]:
    """The address of the function that serves downloads."""
    server = make_server("127.0.0.1", 0, api.clients["read"].application, threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_official_client_follows_the_redirect_without_its_key(
    api: Api, bucket: Bucket, read_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(api, monkeypatch, object_store_url=bucket.url, presigned_downloads=True)
    file = upload(api, CONTENT)
    sent: list[Any] = []
    http = DefaultHttpxClient(event_hooks={"request": [sent.append]})
    with OpenAI(api_key=str(api.key), base_url=read_url, http_client=http) as client:
        assert client.files.content(file["id"]).content == CONTENT
        ranged = client.files.content(file["id"], extra_headers={"Range": "bytes=3-9"})
        assert ranged.content == CONTENT[3:10]
    assert ["Authorization" in request.headers for request in sent] == [True, False, True, False]


def test_command_follows_the_redirect(
    api: Api, bucket: Bucket, read_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(api, monkeypatch, object_store_url=bucket.url, presigned_downloads=True)
    file = upload(api, CONTENT)
    with OpenAI(api_key=str(api.key), base_url=read_url) as client:
        assert b"".join(stream(client, f"files/{file['id']}/content")) == CONTENT


@pytest.mark.usefixtures("bucket")
def test_file_of_another_tenant_is_not_signed(api: Api, world: World) -> None:
    file = parse_file_id(_file(api)["id"])
    assert file is not None
    with pytest.raises(NotFound):
        api.app().services.presigned_downloads.sign(world.tenant("other"), file, 60, actor="x")


@pytest.mark.usefixtures("bucket")
def test_copies_of_another_size_make_no_file(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    created, _, urls = _sent(api)
    _put(created)
    real = Presigner.copy

    def overtaken(self: Presigner, pairs: Sequence[tuple[str, str]]) -> None:
        _send(urls[0], b"short")
        real(self, pairs)

    with monkeypatch.context() as patch:
        patch.setattr(Presigner, "copy", overtaken)
        assert _complete(api, created["id"], []).status_code == 503
    assert api("GET", "/v1/files").json["data"] == []


@pytest.mark.usefixtures("bucket")
def test_missing_bucket_is_unavailable(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    created = _new(api)
    _settings(api, monkeypatch, object_store_url="s3://nowhere/here")
    assert _complete(api, created["id"], []).status_code == 503
