"""Presigned uploads and downloads, which a server with a bucket has, and one with a folder refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import BadRequestError

from tests.conformance.features import Area, proves
from tests.conformance.lines import requests
from tests.conformance.shapes import check_error, check_file, check_upload

if TYPE_CHECKING:
    from tests.conformance.server import Official, Server

UPLOAD = "`uploads.create` with `transfer` `presigned`: the parts go to URLs of the object store"
DOWNLOAD = "`files/{id}/content?presign=SECONDS`: URLs of the object store"
CONTENT = requests(20)


def _is_refused(response: httpx.Response, param: str) -> bool:
    """Return whether the server refuses a parameter, with an error that names it."""
    if response.status_code != 400:
        assert response.status_code == 200, response.text
        return False
    assert check_error(response.json())["param"] == param
    return True


def _check_refusal(error: BadRequestError) -> None:
    """Assert that a server without a bucket says so."""
    assert error.param == "transfer"
    assert "presigned URLs" in error.message


def _put(parts: list[dict[str, Any]]) -> None:
    start = 0
    for part in parts:
        data = CONTENT[start : start + part["bytes"]]
        httpx.put(part["url"], content=data, headers=part["headers"]).raise_for_status()
        start += part["bytes"]
    assert start == len(CONTENT)


@proves(Area.BEYOND, UPLOAD)
def test_presigned_parts_go_to_the_object_store(official: Official, server: Server) -> None:
    def create(client: Any) -> Any:
        return client.uploads.create(
            bytes=len(CONTENT),
            filename="in.jsonl",
            mime_type="application/jsonl",
            purpose="batch",
            extra_body={"transfer": "presigned"},
        )

    try:
        created = official(create)
    except BadRequestError as refused:
        _check_refusal(refused)
        return
    extension = created.x_lowtide
    assert set(extension) == {"transfer", "parts"}
    _put(extension["parts"])
    ids = [part["id"] for part in extension["parts"]]
    completed = official(lambda client: client.uploads.complete(created.id, part_ids=ids))
    assert (completed.status, completed.file.status) == ("completed", "uploaded")
    assert completed.file.bytes == len(CONTENT)
    assert server.content(completed.file.id) == CONTENT
    check_file(server.json(f"/v1/files/{completed.file.id}"))


@proves(Area.BEYOND, UPLOAD)
def test_batch_of_a_presigned_file_completes(server: Server) -> None:
    body = {"bytes": len(CONTENT), "filename": "in.jsonl", "mime_type": "application/jsonl"}
    response = server.http.post(
        "/v1/uploads", json=body | {"purpose": "batch", "transfer": "presigned"}
    )
    if _is_refused(response, "transfer"):
        return
    created = response.json()
    _put(created.pop("x_lowtide")["parts"])
    check_upload(created)
    completed = server.http.post(f"/v1/uploads/{created['id']}/complete", json={"part_ids": []})
    batch = server.http.post(
        "/v1/batches",
        json={
            "input_file_id": completed.json()["file"]["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    )
    ended = server.finish(batch.json())
    assert ended["status"] == "completed"
    assert ended["request_counts"]["total"] == 20


@proves(Area.BEYOND, DOWNLOAD)
def test_presigned_urls_return_the_file(server: Server) -> None:
    file = server.upload(CONTENT)
    response = server.http.get(f"/v1/files/{file['id']}/content", params={"presign": 60})
    if _is_refused(response, "presign"):
        return
    signed = response.json()
    assert (signed["object"], signed["file_id"]) == ("file.presigned", file["id"])
    assert signed["bytes"] == sum(piece["bytes"] for piece in signed["pieces"]) == len(CONTENT)
    content = b"".join(httpx.get(piece["url"]).content for piece in signed["pieces"])
    assert content == CONTENT


@proves(Area.BEYOND, DOWNLOAD)
@pytest.mark.parametrize("seconds", ["0", "604801", "soon"])
def test_validity_of_presigned_urls_is_limited(server: Server, seconds: str) -> None:
    file = server.upload(CONTENT)
    response = server.http.get(f"/v1/files/{file['id']}/content", params={"presign": seconds})
    assert _is_refused(response, "presign")
