"""`/v1/uploads`: files in parts."""

from __future__ import annotations

import gzip
import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.errors import Unavailable
from lowtide.objects.store import ObstoreObjects
from lowtide.uploads import service
from lowtide.uploads.store import UploadStore
from tests.http.conftest import MAX_FILE_BYTES
from tests.http.forms import CONTENT_TYPE, form, line, part, post, upload
from tests.http.test_audit import _audit
from tests.worlds import Running, gate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.http.conftest import Api
    from tests.worlds import World

HOUR = 3600
LINES = [line(f"line-{number}") for number in range(6)]
CONTENT = b"".join(LINES)


def _create(api: Api, size: int = len(CONTENT), **changes: Any) -> dict[str, Any]:
    body = {"bytes": size, "filename": "in.jsonl", "mime_type": "application/jsonl"}
    response = api("POST", "/v1/uploads", json=body | {"purpose": "batch"} | changes)
    assert response.status_code == 200, response.text
    created: dict[str, Any] = response.json
    return created


def _add(api: Api, upload_id: str, data: bytes) -> Any:
    return post(api, form(part("data", data, "upload")), path=f"/v1/uploads/{upload_id}/parts")


def _part(api: Api, upload_id: str, data: bytes) -> str:
    response = _add(api, upload_id, data)
    assert response.status_code == 200, response.text
    return str(response.json["id"])


def _parts(api: Api, upload_id: str, pieces: Sequence[bytes]) -> list[str]:
    return [_part(api, upload_id, piece) for piece in pieces]


def _complete(api: Api, upload_id: str, part_ids: Sequence[str], **more: Any) -> Any:
    return api(
        "POST", f"/v1/uploads/{upload_id}/complete", json={"part_ids": list(part_ids), **more}
    )


def _cancel(api: Api, upload_id: str) -> Any:
    return api("POST", f"/v1/uploads/{upload_id}/cancel")


def _expire(world: World, upload_id: str, seconds: float = 0) -> None:
    """Let an upload and its parts be as old as `seconds` after the upload's expiry."""
    with world.database.engine("owner").begin() as connection:
        # The owner is bound by row-level security, too.
        connection.exec_driver_sql("ALTER TABLE uploads NO FORCE ROW LEVEL SECURITY")
        connection.exec_driver_sql("ALTER TABLE orphan_objects NO FORCE ROW LEVEL SECURITY")
        connection.exec_driver_sql(
            "UPDATE orphan_objects SET due_at = due_at - make_interval(secs => %s)",
            (HOUR + seconds,),
        )
        connection.exec_driver_sql(
            "UPDATE uploads SET expires_at = expires_at - make_interval(secs => %s) WHERE id = %s",
            (HOUR + seconds, uuid.UUID(upload_id.removeprefix("upload_"))),
        )
        connection.exec_driver_sql("ALTER TABLE uploads FORCE ROW LEVEL SECURITY")
        connection.exec_driver_sql("ALTER TABLE orphan_objects FORCE ROW LEVEL SECURITY")


def _sweep(api: Api, world: World) -> None:
    """Delete what a tick deletes."""
    keys = world.ticks.orphans(200)
    ObstoreObjects(f"file://{api.objects}").delete(keys)
    world.ticks.forget_orphans(keys)


def _error(response: Any, status: int, param: str | None) -> str:
    assert response.status_code == status, response.text
    error = response.json["error"]
    assert error["param"] == param
    return str(error["message"])


def test_new_upload_is_pending_for_an_hour(api: Api) -> None:
    before = int(datetime.now(UTC).timestamp())
    created = _create(api, 7, filename="../a\\b.jsonl")
    assert created == {
        "id": created["id"], "object": "upload", "bytes": 7, "created_at": created["created_at"],
        "expires_at": created["created_at"] + HOUR, "filename": "b.jsonl", "purpose": "batch",
        "status": "pending", "file": None,
    }  # fmt: skip
    assert before <= created["created_at"] <= before + 5
    assert created["id"].startswith("upload_")


def test_parts_become_the_file_that_one_upload_would(api: Api, world: World) -> None:
    whole = upload(api, CONTENT)
    created = _create(api)
    first = _add(api, created["id"], CONTENT[:100]).json
    assert first == {
        "id": first["id"], "object": "upload.part", "created_at": first["created_at"],
        "upload_id": created["id"],
    }  # fmt: skip
    second = _part(api, created["id"], CONTENT[100:])
    completed = _complete(api, created["id"], [first["id"], second]).json
    file = completed.pop("file")
    assert {**completed, "file": None} == created | {"status": "completed"}
    times = ("id", "created_at", "expires_at")
    assert {**file, **{name: whole[name] for name in times}} == whole
    assert file["expires_at"] - file["created_at"] == whole["expires_at"] - whole["created_at"]
    assert api("GET", f"/v1/files/{file['id']}").json == file
    assert api("GET", f"/v1/files/{file['id']}/content").data == CONTENT
    rows = world.rows("SELECT lines, endpoint, sha256, status_details FROM files")
    assert rows[0] == rows[1]
    assert _audit(world) == [("files.create", whole["id"]), ("files.create", file["id"])]
    batch = api("POST", "/v1/batches", json={"input_file_id": file["id"]})
    assert batch.status_code == 200


def test_part_ids_give_the_order(api: Api) -> None:
    created = _create(api)
    arrived = {place: _part(api, created["id"], LINES[place]) for place in (3, 0, 5, 1, 4, 2)}
    file = _complete(api, created["id"], [arrived[place] for place in range(6)]).json["file"]
    assert api("GET", f"/v1/files/{file['id']}/content").data == CONTENT


def test_parts_are_added_in_parallel(api: Api) -> None:
    created = _create(api)
    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(lambda piece: _part(api, created["id"], piece), LINES))
    file = _complete(api, created["id"], ids).json["file"]
    assert api("GET", f"/v1/files/{file['id']}/content").data == CONTENT


def test_unnamed_part_is_left_out(api: Api) -> None:
    created = _create(api)
    _part(api, created["id"], b"sent twice, as the first answer was lost")
    ids = _parts(api, created["id"], [CONTENT])
    assert _complete(api, created["id"], ids).json["file"]["bytes"] == len(CONTENT)


def test_empty_upload_becomes_the_file_that_one_upload_would(api: Api) -> None:
    created = _create(api, 0)
    file = _complete(api, created["id"], []).json["file"]
    assert (file["bytes"], file["status"]) == (0, "error")
    assert file["status_details"] == upload(api, b"")["status_details"]


def test_problems_of_lines_are_in_status_details(api: Api) -> None:
    content = line("a") + line("a")
    created = _create(api, len(content))
    file = _complete(api, created["id"], _parts(api, created["id"], [content])).json["file"]
    assert (file["status"], file["status_details"]) == (
        "error", upload(api, content)["status_details"],
    )  # fmt: skip


def test_file_expires_as_its_upload_says(api: Api) -> None:
    created = _create(api, expires_after={"anchor": "created_at", "seconds": 2 * HOUR})
    file = _complete(api, created["id"], _parts(api, created["id"], [CONTENT])).json["file"]
    assert file["expires_at"] == file["created_at"] + 2 * HOUR


@pytest.mark.parametrize("form_of", [str.lower, str.upper], ids=["lower", "upper"])
def test_right_md5_is_accepted(api: Api, form_of: Any) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    md5 = form_of(hashlib.md5(CONTENT, usedforsecurity=False).hexdigest())
    assert _complete(api, created["id"], ids, md5=md5).status_code == 200


def test_wrong_md5_makes_no_file_and_can_be_corrected(api: Api, world: World) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    message = _error(_complete(api, created["id"], ids[::-1], md5=md5), 400, "md5")
    assert md5 in message
    assert world.rows("SELECT 1 FROM files") == []
    assert all(key.startswith("parts/") for key in api.object_keys())
    assert _complete(api, created["id"], ids, md5=md5).json["status"] == "completed"


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        pytest.param({"bytes": MAX_FILE_BYTES + 1}, 413, "bytes", id="too large"),
        pytest.param({"bytes": 10**30}, 413, "bytes", id="much too large"),
        pytest.param({"bytes": -1}, 400, "bytes", id="negative"),
        pytest.param({"bytes": "7"}, 400, "bytes", id="no integer"),
        pytest.param({"bytes": None}, 400, "bytes", id="no size"),
        pytest.param({"filename": None}, 400, "filename", id="no filename"),
        pytest.param({"mime_type": 1}, 400, "mime_type", id="wrong mime type"),
        pytest.param({"purpose": "assistants"}, 400, "purpose", id="other purpose"),
        pytest.param(
            {"expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "expires_after",
            id="too short an expiry",
        ),
    ],
)  # fmt: skip
def test_invalid_upload_is_refused(
    api: Api, world: World, changes: dict[str, Any], status: int, param: str
) -> None:
    body = {"bytes": 1, "filename": "a", "mime_type": "application/jsonl", "purpose": "batch"}
    _error(api("POST", "/v1/uploads", json=body | changes), status, param)
    assert world.rows("SELECT 1 FROM uploads") == []


def test_upload_of_max_size_is_accepted(api: Api) -> None:
    assert _create(api, MAX_FILE_BYTES)["status"] == "pending"


@pytest.mark.parametrize(
    ("body", "content_type", "status", "param"),
    [
        pytest.param(form(part("file", b"x", "a")), CONTENT_TYPE, 400, "data", id="no data"),
        pytest.param(form(part("data", b"x", "a"))[:-9], CONTENT_TYPE, 400, "data", id="cut off"),
        pytest.param(
            form(part("data", b"x", "a"), part("data", b"y", "b")), CONTENT_TYPE, 400, "data",
            id="two parts",
        ),
        pytest.param(b"{}", "application/json", 415, None, id="not a form"),
    ],
)  # fmt: skip
def test_invalid_part_is_refused_and_leaves_nothing(
    api: Api, world: World, body: bytes, content_type: str, status: int, param: str | None
) -> None:
    created = _create(api)
    _error(post(api, body, content_type, f"/v1/uploads/{created['id']}/parts"), status, param)
    assert api.object_keys() == set()
    assert world.rows("SELECT 1 FROM upload_parts") == []


@pytest.mark.parametrize("excess", [1, 100_000], ids=["a byte", "known before it is read"])
def test_part_has_a_largest_size(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch, excess: int
) -> None:
    monkeypatch.setattr("lowtide.uploads.service.MAX_PART_BYTES", 1000)
    monkeypatch.setattr("lowtide.uploads.api.MAX_PART_BYTES", 1000)
    created = _create(api)
    message = _error(_add(api, created["id"], b"x" * (1000 + excess)), 413, "data")
    assert "1000 bytes" in message
    assert api.object_keys() == set()
    assert world.rows("SELECT 1 FROM upload_parts") == []
    assert _add(api, created["id"], b"x" * 1000).status_code == 200


def test_part_is_not_held_in_memory(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = service.PartUpload.write

    def noted(self: service.PartUpload, chunk: bytes) -> None:
        sizes.append(len(chunk))
        write(self, chunk)

    monkeypatch.setattr(service.PartUpload, "write", noted)
    created = _create(api)
    assert _add(api, created["id"], b"x" * 3_000_000).status_code == 200
    assert sum(sizes) == 3_000_000
    assert max(sizes) <= 1 << 18


def test_parts_of_another_size_are_refused_with_both_numbers(api: Api, world: World) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    message = _error(_complete(api, created["id"], ids[:-1]), 400, "part_ids")
    assert f"{len(CONTENT) - len(LINES[-1])} bytes" in message
    assert f"for {len(CONTENT)}:" in message
    assert world.rows("SELECT 1 FROM files") == []
    assert _complete(api, created["id"], ids).status_code == 200


@pytest.mark.parametrize("kind", ["unknown", "malformed", "of another upload", "of another tenant"])
def test_part_of_no_or_another_upload_is_refused_by_name(
    api: Api, world: World, kind: str
) -> None:
    created = _create(api)
    own = _part(api, created["id"], CONTENT)
    other = {"unknown": "part_" + "0" * 32, "malformed": "x" * 300}.get(kind)
    if other is None:
        other = _part(api, _create(api)["id"], CONTENT)
    if kind == "of another tenant":
        world.run_as_owner("SELECT 1")
    message = _error(_complete(api, created["id"], [own, other]), 400, "part_ids")
    assert other[:100] in message


def test_repeated_part_is_refused_by_name(api: Api) -> None:
    created = _create(api, 2 * len(CONTENT))
    own = _part(api, created["id"], CONTENT)
    message = _error(_complete(api, created["id"], [own, own]), 400, "part_ids")
    assert own in message
    assert "twice" in message


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "part_ids"), ({"part_ids": [1]}, "part_ids"), ({"part_ids": [], "md5": "x"}, "md5")],
    ids=["none", "no text", "no md5"],
)
def test_invalid_completion_is_refused(api: Api, body: dict[str, Any], param: str) -> None:
    created = _create(api)
    response = api("POST", f"/v1/uploads/{created['id']}/complete", json=body)
    _error(response, 400, param)


def test_gzip_file_is_refused_with_fix(api: Api, world: World) -> None:
    packed = gzip.compress(CONTENT)
    created = _create(api, len(packed))
    response = _complete(api, created["id"], _parts(api, created["id"], [packed[:1], packed[1:]]))
    assert "decompress" in _error(response, 415, "file")
    assert world.rows("SELECT 1 FROM files") == []
