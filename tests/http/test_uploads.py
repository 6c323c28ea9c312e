"""`/v1/uploads`: files in parts."""

from __future__ import annotations

import gzip
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.errors import Conflict, Unavailable
from lowtide.core.ids import DEFAULT_TENANT, format_file_id, new_id, now, parse_upload_id
from lowtide.files.index import index_key
from lowtide.files.lines import LineReader
from lowtide.objects.store import ObstoreObjects, ObstoreWriter
from lowtide.tenants.keys import hash_key
from lowtide.uploads import service
from lowtide.uploads.service import Uploads
from lowtide.uploads.store import UploadStore
from tests.conftest import PEPPER
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


def _rows(world: World, sql: str, **parameters: Any) -> list[Any]:
    with world._superuser.begin() as connection:
        result = connection.execute(text(sql), parameters)
        return list(result.all()) if result.returns_rows else []


def _age(world: World, seconds: float) -> None:
    """Let all uploads and orphans be `seconds` older."""
    for column in ("orphan_objects SET due_at = due_at", "uploads SET expires_at = expires_at"):
        _rows(world, f"UPDATE {column} - make_interval(secs => :seconds)", seconds=seconds)


def _sweep(api: Api, world: World) -> None:
    """Delete what a tick deletes."""
    keys = world.ticks.orphans(200).keys
    ObstoreObjects(f"file://{api.objects}").delete(keys)
    world.ticks.forget_orphans(keys)


def _error(response: Any, status: int, param: str | None) -> str:
    assert response.status_code == status, response.text
    error = response.json["error"]
    assert error["param"] == param
    return str(error["message"])


def _objects_of(file: str) -> set[str]:
    """Return the keys of a file's object and of its index."""
    key = f"files/{file.removeprefix('file-')}"
    return {key, index_key(key)}


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
    rows = world.rows("SELECT lines, endpoint, sha256, status_details FROM files")
    assert rows[0] == rows[1]
    assert _audit(world) == [("files.create", whole["id"]), ("files.create", file["id"])]
    assert api("GET", f"/v1/files/{file['id']}/content").data == CONTENT
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
        pytest.param({"bytes": "7"}, 400, "bytes", id="no number"),
        pytest.param({"bytes": 7.5}, 400, "bytes", id="no integer"),
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
    assert _rows(world, "SELECT 1 FROM uploads") == []


@pytest.mark.parametrize("number", [int, float])
def test_upload_of_max_size_is_accepted(api: Api, number: Any) -> None:
    created = _create(api, number(MAX_FILE_BYTES))
    assert (created["status"], created["bytes"]) == ("pending", MAX_FILE_BYTES)
    assert isinstance(created["bytes"], int)


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
    assert _rows(world, "SELECT 1 FROM upload_parts") == []


@pytest.mark.parametrize(
    ("excess", "said"),
    [(1, "The part is larger"), (100_000, "The data is larger")],
    ids=["a byte", "known before it is read"],
)
def test_part_has_a_largest_size(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch, excess: int, said: str
) -> None:
    monkeypatch.setattr("lowtide.uploads.service.MAX_PART_BYTES", 1000)
    monkeypatch.setattr("lowtide.uploads.api.MAX_PART_BYTES", 1000)
    created = _create(api)
    message = _error(_add(api, created["id"], b"x" * (1000 + excess)), 413, "data")
    assert message.startswith(f"{said} than 1000 bytes")
    assert api.object_keys() == set()
    assert _rows(world, "SELECT 1 FROM upload_parts") == []
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


def test_bytes_of_all_parts_have_an_exact_limit_in_parallel(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.uploads.model.MAX_PART_BYTES", 100)
    created = _create(api, 200)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: _add(api, created["id"], b"x" * 80), range(16)))
    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [413] * 10
    assert "at most 10000 parts with 500 bytes together" in _error(
        _add(api, created["id"], b"x" * 21), 413, "data"
    )
    assert _add(api, created["id"], b"x" * 20).status_code == 200
    assert world.value("SELECT part_bytes FROM uploads") == 500
    sizes = [(api.objects / key).stat().st_size for key in api.object_keys()]
    assert sorted(sizes) == [20, *[80] * 6]


def test_number_of_parts_has_an_exact_limit_in_parallel(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("service", "store"):
        monkeypatch.setattr(f"lowtide.uploads.{module}.MAX_PARTS", 6)
    created = _create(api)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: _add(api, created["id"], b"x"), range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [413] * 4
    assert "at most 6 parts" in _error(_add(api, created["id"], b"x"), 413, "data")
    assert world.value("SELECT part_count FROM uploads") == 6
    assert len(api.object_keys()) == 6


def test_upload_that_is_full_is_still_completed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("service", "store"):
        monkeypatch.setattr(f"lowtide.uploads.{module}.MAX_PARTS", len(LINES))
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    assert _add(api, created["id"], b"x").status_code == 413
    assert _complete(api, created["id"], ids).status_code == 200


def test_parts_of_another_size_are_refused_with_both_numbers(api: Api, world: World) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    message = _error(_complete(api, created["id"], ids[:-1]), 400, "part_ids")
    assert f"{len(CONTENT) - len(LINES[-1])} bytes" in message
    assert f"for {len(CONTENT)}:" in message
    assert world.rows("SELECT 1 FROM files") == []
    assert _complete(api, created["id"], ids).status_code == 200


@pytest.fixture
def stranger(api: Api, world: World) -> Api:
    """The API for another tenant."""
    tenant = world.tenant("stranger")
    with world.database.engine("owner").begin() as connection:
        connection.execute(
            text("INSERT INTO api_keys (hash, tenant_id, name) VALUES (:hash, :tenant, 'key')"),
            {"hash": hash_key("stranger", PEPPER), "tenant": tenant},
        )
    return replace(api, key="stranger")


@pytest.mark.parametrize("kind", ["unknown", "malformed", "other upload's", "other tenant's"])
def test_part_of_no_or_another_upload_is_refused_by_name(
    api: Api, stranger: Api, kind: str
) -> None:
    other = {
        "unknown": lambda: "part_" + "0" * 32,
        "malformed": lambda: "x" * 300,
        "other upload's": lambda: _part(api, _create(api)["id"], CONTENT),
        "other tenant's": lambda: _part(stranger, _create(stranger)["id"], CONTENT),
    }[kind]()
    created = _create(api)
    own = _part(api, created["id"], CONTENT)
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


@pytest.mark.parametrize("call", ["parts", "complete", "cancel"])
@pytest.mark.parametrize("name", ["upload_" + "0" * 32, "upload_x", "another tenant's"])
def test_unknown_or_foreign_upload_returns_404(
    api: Api, stranger: Api, world: World, call: str, name: str
) -> None:
    foreign = name == "another tenant's"
    upload_id = _create(stranger, 0)["id"] if foreign else name
    calls: dict[str, Any] = {
        "parts": lambda: _add(api, upload_id, b"x"),
        "complete": lambda: _complete(api, upload_id, []),
        "cancel": lambda: _cancel(api, upload_id),
    }
    assert upload_id in _error(calls[call](), 404, "upload_id")
    assert api.object_keys() == set()
    states = _rows(world, "SELECT status FROM uploads")
    assert [row.status for row in states] == (["pending"] if foreign else [])


def test_completing_again_returns_same_file(api: Api, world: World) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    first, second = (_complete(api, created["id"], ids) for _ in range(2))
    assert (second.status_code, second.json) == (200, first.json)
    assert world.value("SELECT count(*) FROM files") == 1
    assert len(_audit(world)) == 1
    file = first.json["file"]["id"]
    assert api("DELETE", f"/v1/files/{file}").status_code == 200
    assert _complete(api, created["id"], ids).json == first.json | {"file": None}


def test_completing_again_with_other_parts_is_refused(api: Api) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    assert _complete(api, created["id"], ids).status_code == 200
    response = _complete(api, created["id"], ids[::-1])
    assert "completed with other parts" in _error(response, 409, "upload_id")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("same", [True, False], ids=["same order", "other order"])
def test_completions_at_once_make_one_file(api: Api, world: World, *, same: bool) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    engine = world.own_engine("api")
    services = api.app("upload").services
    slow = Uploads(
        UploadStore(engine),
        services.uploads._files,
        services.files,
        ObstoreObjects(f"file://{api.objects}"),
        services.uploads._presigned,
        new_id=new_id,
        clock=now,
    )
    upload_id = parse_upload_id(created["id"])
    assert upload_id is not None
    with gate(engine, before="UPDATE uploads") as checkpoint:
        loser = Running(
            lambda: slow.complete(DEFAULT_TENANT, upload_id, ids, md5=None, actor="slow")
        )
        checkpoint.wait()
        winner = _complete(api, created["id"], ids if same else ids[::-1])
        checkpoint.opened.set()
        if same:
            _, file = loser.result()
            assert format_file_id(file.id) == winner.json["file"]["id"]
        else:
            with pytest.raises(Conflict, match="with other parts"):
                loser.result()
    (stored,) = world.rows("SELECT object_key FROM files")
    assert stored.object_key in api.object_keys()
    assert {key for key in api.object_keys() if key.startswith("files/")} == {stored.object_key}
    assert len(_audit(world)) == 1


def test_completion_that_lost_its_parts_to_another_returns_its_file(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    stream = ObstoreObjects.stream
    answers: list[Any] = []

    def other_first(self: ObstoreObjects, key: str, *_: int | None) -> Iterator[bytes]:
        monkeypatch.setattr(ObstoreObjects, "stream", stream)
        answers.append(_complete(api, created["id"], ids).json)
        _sweep(api, world)
        return stream(self, key)

    monkeypatch.setattr(ObstoreObjects, "stream", other_first)
    response = _complete(api, created["id"], ids)
    assert (response.status_code, [response.json]) == (200, answers)
    assert world.value("SELECT count(*) FROM files") == 1


def test_cancelled_upload_takes_no_part_and_makes_no_file(api: Api, world: World) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    cancelled = _cancel(api, created["id"])
    assert cancelled.json == created | {"status": "cancelled"}
    assert _cancel(api, created["id"]).json == cancelled.json
    for response in (_add(api, created["id"], b"x"), _complete(api, created["id"], ids)):
        assert "is cancelled" in _error(response, 409, "upload_id")
    _sweep(api, world)
    assert api.object_keys() == set()


def test_completed_upload_takes_no_part_and_is_not_cancelled(api: Api, world: World) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    file = _complete(api, created["id"], ids).json["file"]["id"]
    assert "is completed: create" in _error(_add(api, created["id"], b"x"), 409, "upload_id")
    assert "delete its file" in _error(_cancel(api, created["id"]), 409, "upload_id")
    _sweep(api, world)
    assert api.object_keys() == _objects_of(file)
    assert api("GET", f"/v1/files/{file}/content").data == CONTENT


def test_upload_that_ends_during_a_part_refuses_it(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = _create(api)
    add_part = UploadStore.add_part

    def cancel_first(*arguments: Any) -> None:
        assert _cancel(api, created["id"]).status_code == 200
        add_part(*arguments)

    monkeypatch.setattr(UploadStore, "add_part", cancel_first)
    assert "is cancelled" in _error(_add(api, created["id"], b"x"), 409, "upload_id")
    assert api.object_keys() == set()
    assert world.rows("SELECT 1 FROM orphan_objects") == []


def test_expired_upload_takes_no_part_and_its_parts_are_deleted(api: Api, world: World) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    _age(world, HOUR)
    for response in (_add(api, created["id"], b"x"), _complete(api, created["id"], ids)):
        assert "is expired" in _error(response, 409, "upload_id")
    assert _cancel(api, created["id"]).json["status"] == "expired"
    _sweep(api, world)
    assert len(api.object_keys()) == len(LINES), "a completion may still be reading them"
    _age(world, HOUR / 4)
    _sweep(api, world)
    assert api.object_keys() == set()
    assert world.rows("SELECT 1 FROM orphan_objects") == []


def test_upload_that_expires_during_its_completion_is_completed(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    stream = ObstoreObjects.stream

    def slowly(self: ObstoreObjects, key: str, *_: int | None) -> Iterator[bytes]:
        _age(world, HOUR / len(LINES) + 1)
        _sweep(api, world)
        return stream(self, key)

    monkeypatch.setattr(ObstoreObjects, "stream", slowly)
    assert _complete(api, created["id"], ids).json["status"] == "completed"


def test_old_uploads_are_forgotten_in_portions(api: Api, world: World) -> None:
    for _ in range(3):
        _parts(api, _create(api)["id"], LINES[:2])
    _age(world, 25 * HOUR)
    recent = _create(api)["id"]
    (part_id,) = _parts(api, recent, [CONTENT])
    world.ticks.orphans(2)
    assert len(_rows(world, "SELECT 1 FROM uploads")) == 2
    world.ticks.orphans(2)
    assert len(_rows(world, "SELECT 1 FROM uploads")) == 1
    assert len(_rows(world, "SELECT 1 FROM upload_parts")) == 1
    assert _complete(api, recent, [part_id]).status_code == 200


class _KilledError(BaseException):
    """The end of the process."""


@pytest.mark.parametrize(
    ("holder", "method"),
    [
        pytest.param(ObstoreWriter, "write", id="before the file's first byte"),
        pytest.param(LineReader, "finish", id="before the file is whole"),
        pytest.param(UploadStore, "complete", id="before the commit"),
    ],
)
def test_completion_can_be_repeated_after_crash_at_any_step(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch, holder: Any, method: str
) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)

    def die(*_: Any, **__: Any) -> None:
        raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(holder, method, die)
        # A killed process cleans nothing up.
        patch.setattr(ObstoreObjects, "delete", lambda *_: None)
        with pytest.raises(_KilledError):
            _complete(api, created["id"], ids)
    assert world.rows("SELECT 1 FROM files") == []
    orphans = {row.object_key for row in world.rows("SELECT object_key FROM orphan_objects")}
    assert api.object_keys() <= orphans
    file = _complete(api, created["id"], ids).json["file"]["id"]
    _age(world, 6 * HOUR)
    _sweep(api, world)
    assert api.object_keys() == _objects_of(file)
    assert api("GET", f"/v1/files/{file}/content").data == CONTENT


def test_completion_can_be_repeated_after_lost_reply(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = _create(api)
    ids = _parts(api, created["id"], LINES)
    complete = UploadStore.complete

    def commit_then_fail(*arguments: Any) -> None:
        complete(*arguments)
        raise Unavailable("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(UploadStore, "complete", commit_then_fail)
        assert _complete(api, created["id"], ids).status_code == 503
    file = _complete(api, created["id"], ids).json["file"]["id"]
    assert api("GET", f"/v1/files/{file}/content").data == CONTENT
    assert world.value("SELECT count(*) FROM files") == 1


@pytest.mark.parametrize("step", ["write", "close", "record"])
def test_outage_during_part_leaves_at_most_a_recorded_orphan(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    created = _create(api)

    def fail(*_: Any, **__: Any) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(ObstoreWriter, "write", fail)
        elif step == "close":
            patch.setattr("lowtide.objects.store._sync", fail)
        else:
            patch.setattr(UploadStore, "add_part", fail)
        assert _add(api, created["id"], CONTENT).status_code == 503
    assert _rows(world, "SELECT 1 FROM upload_parts") == []
    orphans = {row.object_key for row in world.rows("SELECT object_key FROM orphan_objects")}
    assert api.object_keys() <= orphans
    assert _complete(api, created["id"], _parts(api, created["id"], [CONTENT])).status_code == 200


@pytest.mark.parametrize("damage", ["gone", "changed", "cut"])
def test_damaged_part_is_refused_by_name(api: Api, world: World, damage: str) -> None:
    created = _create(api)
    part_id = _part(api, created["id"], CONTENT)
    (key,) = api.object_keys()
    path = api.objects / key
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(CONTENT[:-1] + b" " if damage == "changed" else CONTENT[:-1])
    message = _error(_complete(api, created["id"], [part_id]), 400, "part_ids")
    assert part_id in message
    assert world.rows("SELECT 1 FROM files") == []
