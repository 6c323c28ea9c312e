"""`/v1/uploads`: files in parts."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.conformance.features import Area, proves
from tests.conformance.lines import requests
from tests.conformance.shapes import check_file, check_upload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conformance.server import Official, Own, Server

CHUNKED = "`uploads.upload_file_chunked` with bytes or a path"
PARTS = "`uploads.parts.create`: up to 64 MiB, in parallel and in any order"
COMPLETE = "`uploads.complete` with the parts in their order, and `md5`"
CANCEL = "`uploads.cancel`"
HOUR = 3600
CONTENT = requests(20)
PART_SIZE = 1000
PIECES = [CONTENT[start : start + PART_SIZE] for start in range(0, len(CONTENT), PART_SIZE)]
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
UNKNOWN = "upload_" + "0" * 32


def _create(server: Server, size: int = len(CONTENT), **changes: Any) -> dict[str, Any]:
    body = {"bytes": size, "filename": "in.jsonl", "mime_type": "application/jsonl"}
    response = server.http.post("/v1/uploads", json=body | {"purpose": "batch"} | changes)
    assert response.status_code == 200, response.text
    created: dict[str, Any] = response.json()
    return created


def _part(server: Server, created: dict[str, Any], data: bytes) -> str:
    response = server.http.post(f"/v1/uploads/{created['id']}/parts", files={"data": data})
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def _complete(server: Server, created: dict[str, Any], ids: Sequence[str], **more: Any) -> Any:
    body = {"part_ids": list(ids), **more}
    return server.http.post(f"/v1/uploads/{created['id']}/complete", json=body)


@proves(Area.UPLOADS, CHUNKED)
@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_client_uploads_file_in_chunks(
    official: Official, server: Server, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(CONTENT)
    source: dict[str, Any] = {"file": path}
    if kind == "bytes":
        source = {"file": CONTENT, "filename": path.name, "bytes": len(CONTENT)}
    upload = official(
        lambda client: client.uploads.upload_file_chunked(
            **source, mime_type="application/jsonl", purpose="batch", part_size=PART_SIZE, md5=MD5
        )
    )
    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(CONTENT), path.name)
    file = server.json(f"/v1/files/{upload.file.id}")
    assert check_file(file) == upload.file
    assert (file["status"], file["bytes"], file["filename"]) == (
        "processed",
        len(CONTENT),
        path.name,
    )
    assert server.content(file["id"]) == CONTENT


@proves(Area.UPLOADS, CHUNKED)
def test_batch_of_file_in_parts_completes(official: Official, server: Server) -> None:
    upload = official(
        lambda client: client.uploads.upload_file_chunked(
            file=CONTENT,
            filename="in.jsonl",
            bytes=len(CONTENT),
            mime_type="application/jsonl",
            purpose="batch",
        )
    )
    created = server.http.post(
        "/v1/batches",
        json={
            "input_file_id": upload.file.id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    ).json()
    assert server.finish(created)["request_counts"] == {"total": 20, "completed": 20, "failed": 0}


@proves(Area.UPLOADS, "`uploads.create`; an upload expires after an hour")
def test_new_upload_is_pending(official: Official) -> None:
    answer = official(
        lambda client: client.uploads.with_raw_response.create(
            bytes=5, filename="in.jsonl", mime_type="application/jsonl", purpose="batch"
        )
    )
    upload = check_upload(answer.http_response.json())
    assert answer.parse() == upload
    assert (upload.status, upload.bytes, upload.file) == ("pending", 5, None)
    assert upload.expires_at == upload.created_at + HOUR


@proves(Area.UPLOADS, "`expires_after` of the file, from an hour to 30 days")
def test_file_of_upload_expires_after_seconds(official: Official, server: Server) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 2 * HOUR}
    created = _create(server, expires_after=expiry)
    ids = [_part(server, created, CONTENT)]
    upload = official(lambda client: client.uploads.complete(created["id"], part_ids=ids))
    assert upload.file.expires_at == upload.file.created_at + 2 * HOUR


@proves(Area.UPLOADS, PARTS)
def test_parts_arrive_in_parallel_and_in_any_order(server: Server) -> None:
    created = _create(server)
    with ThreadPoolExecutor(len(PIECES)) as pool:
        backwards = list(pool.map(lambda data: _part(server, created, data), PIECES[::-1]))
    upload = check_upload(_complete(server, created, backwards[::-1]).json())
    assert upload.file is not None
    assert server.content(upload.file.id) == CONTENT


@proves(Area.UPLOADS, PARTS)
def test_part_has_documented_shape(official: Official, server: Server) -> None:
    created = _create(server)
    answer = official(
        lambda client: client.uploads.parts.with_raw_response.create(created["id"], data=b"x")
    )
    raw = answer.http_response.json()
    assert set(raw) == {"id", "object", "created_at", "upload_id"}
    assert (raw["object"], raw["upload_id"]) == ("upload.part", created["id"])
    assert answer.parse().to_dict() == raw


@proves(Area.UPLOADS, PARTS)
def test_part_of_64_mib_is_accepted(server: Server) -> None:
    created = _create(server)
    assert _part(server, created, bytes(64 << 20)).startswith("part_")
    assert server.http.post(f"/v1/uploads/{created['id']}/cancel").status_code == 200


@proves(Area.UPLOADS, COMPLETE)
def test_wrong_md5_is_refused(official: Official, server: Server) -> None:
    created = _create(server)
    ids = [_part(server, created, piece) for piece in PIECES]
    with pytest.raises(openai.BadRequestError) as refused:
        official(lambda client: client.uploads.complete(created["id"], part_ids=ids, md5="0" * 32))
    assert refused.value.param == "md5"
    assert _complete(server, created, ids, md5=MD5).status_code == 200


@proves(Area.UPLOADS, COMPLETE)
@pytest.mark.parametrize("fault", ["missing", "unknown", "repeated"])
def test_parts_that_do_not_make_the_file_are_refused(
    official: Official, server: Server, fault: str
) -> None:
    created = _create(server)
    ids = [_part(server, created, piece) for piece in PIECES]
    wrong = {
        "missing": ids[1:],
        "unknown": [*ids, "part_" + "0" * 32],
        "repeated": [*ids, ids[0]],
    }[fault]
    with pytest.raises(openai.BadRequestError) as refused:
        official(lambda client: client.uploads.complete(created["id"], part_ids=wrong))
    assert refused.value.param == "part_ids"
    assert _complete(server, created, ids).status_code == 200


@proves(Area.UPLOADS, "Completing an upload again returns the same file")
def test_completing_again_returns_same_upload(server: Server) -> None:
    created = _create(server)
    ids = [_part(server, created, piece) for piece in PIECES]
    first, second = (_complete(server, created, ids) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()


@proves(Area.UPLOADS, CANCEL)
def test_cancelled_upload_is_final(official: Official, server: Server) -> None:
    created = _create(server)
    upload = official(lambda client: client.uploads.cancel(created["id"]))
    assert (upload.id, upload.status) == (created["id"], "cancelled")
    assert official(lambda client: client.uploads.cancel(created["id"])) == upload
    with pytest.raises(openai.ConflictError):
        official(lambda client: client.uploads.parts.create(created["id"], data=b"x"))
    with pytest.raises(openai.ConflictError):
        official(lambda client: client.uploads.complete(created["id"], part_ids=[]))


@proves(Area.UPLOADS, "`bytes` up to 200 MB; more is 413")
def test_upload_over_limit_is_refused_at_its_start(official: Official, own: Own) -> None:
    size = int(own.stack.settings["LOWTIDE_MAX_FILE_BYTES"]) + 1
    with pytest.raises(openai.APIStatusError) as refused:
        official(
            lambda client: client.uploads.create(
                bytes=size, filename="a", mime_type="application/jsonl", purpose="batch"
            )
        )
    assert (refused.value.status_code, refused.value.param) == (413, "bytes")


@proves(Area.UPLOADS, "An unknown id is 404, whatever it looks like")
@pytest.mark.parametrize("call", ["parts", "complete", "cancel"])
@pytest.mark.parametrize("upload_id", [UNKNOWN, "upload_x", "x" * 300])
def test_unknown_upload_returns_404(official: Official, call: str, upload_id: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        official(
            {
                "parts": lambda client: client.uploads.parts.create(upload_id, data=b"x"),
                "complete": lambda client: client.uploads.complete(upload_id, part_ids=[]),
                "cancel": lambda client: client.uploads.cancel(upload_id),
            }[call]
        )
    assert refused.value.code == "not_found"


@proves(Area.UPLOADS, "Purposes other than `batch`", supported=False)
@pytest.mark.parametrize("purpose", ["assistants", "fine-tune", "vision"])
def test_uploads_for_other_purposes_are_refused(official: Official, purpose: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        official(
            lambda client: client.uploads.create(
                bytes=1, filename="a", mime_type="application/jsonl", purpose=purpose
            )
        )
    assert (refused.value.code, refused.value.param) == ("invalid_purpose", "purpose")
