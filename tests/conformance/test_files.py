"""`/v1/files`: upload, retrieve, delete."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.conformance.features import Area, proves
from tests.conformance.lines import held, jsonl, request, requests
from tests.conformance.shapes import check_error, check_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.server import Official, Own, Server

DAY = 86_400
UNKNOWN = "file-" + "0" * 32


@proves(Area.FILES, "`files.create` with bytes, a tuple or a path")
@pytest.mark.parametrize("kind", ["bytes", "tuple", "path"])
def test_upload_accepts_bytes_tuple_and_path(official: Official, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(requests(3))
    file: Any = {"bytes": requests(3), "tuple": (path.name, requests(3)), "path": path}[kind]
    answer = official(
        lambda client: client.files.with_raw_response.create(file=file, purpose="batch")
    )
    uploaded = check_file(answer.http_response.json())
    assert (uploaded.bytes, uploaded.purpose) == (len(requests(3)), "batch")
    assert (uploaded.status, uploaded.status_details) == ("processed", None)
    assert uploaded.filename == (path.name if kind != "bytes" else uploaded.filename)
    assert answer.parse() == uploaded


@proves(Area.FILES, "`expires_after`, from an hour to 30 days; 30 days without it")
@pytest.mark.parametrize("seconds", [None, 3600, 2_592_000], ids=["default", "hour", "30-days"])
def test_file_expires_after_seconds_or_30_days(official: Official, seconds: int | None) -> None:
    expiry = (
        {} if seconds is None else {"expires_after": {"anchor": "created_at", "seconds": seconds}}
    )
    uploaded = official(
        lambda client: client.files.create(file=requests(1), purpose="batch", **expiry)
    )
    assert uploaded.expires_at == uploaded.created_at + (seconds or 30 * DAY)


@proves(Area.FILES, "`expires_after`, from an hour to 30 days; 30 days without it")
@pytest.mark.parametrize(
    "expiry",
    [
        pytest.param({"anchor": "created_at", "seconds": 3599}, id="too-soon"),
        pytest.param({"anchor": "created_at", "seconds": 2_592_001}, id="too-late"),
        pytest.param({"anchor": "last_active_at", "seconds": 3600}, id="other-anchor"),
        pytest.param({"anchor": "created_at"}, id="no-seconds"),
        pytest.param({"seconds": 3600}, id="no-anchor"),
    ],
)
def test_invalid_file_expiry_is_refused(official: Official, expiry: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        official(
            lambda client: client.files.create(
                file=requests(1), purpose="batch", expires_after=expiry
            )
        )
    assert refused.value.param == "expires_after"


@proves(Area.FILES, "`files.retrieve`")
def test_retrieve_returns_file(official: Official, server: Server) -> None:
    uploaded = server.upload(requests(2))
    answer = official(lambda client: client.files.with_raw_response.retrieve(uploaded["id"]))
    assert answer.http_response.json() == uploaded
    assert answer.parse() == check_file(uploaded)


@proves(Area.FILES, "`files.wait_for_processing`")
def test_wait_for_processing_returns_processed_file(official: Official, server: Server) -> None:
    uploaded = server.upload(requests(1))
    ready = official(lambda client: client.files.wait_for_processing(uploaded["id"]))
    assert ready.status == "processed"


@proves(Area.FILES, "`files.delete`")
def test_deleted_file_is_gone(official: Official, server: Server) -> None:
    file_id = server.upload(requests(1))["id"]
    answer = official(lambda client: client.files.with_raw_response.delete(file_id))
    raw = {"id": file_id, "object": "file", "deleted": True}
    assert answer.http_response.json() == raw
    assert answer.parse().to_dict() == raw
    with pytest.raises(openai.NotFoundError):
        official(lambda client: client.files.retrieve(file_id))
    with pytest.raises(openai.NotFoundError):
        official(lambda client: client.files.content(file_id))
    with pytest.raises(openai.NotFoundError):
        official(lambda client: client.files.delete(file_id))


@proves(Area.FILES, "`files.delete`")
def test_file_in_use_can_be_deleted(official: Official, server: Server, own: Own) -> None:
    batch = server.create(jsonl(*held("file-in-use", 1), request("other")))
    file_id = batch["input_file_id"]
    assert official(lambda client: client.files.delete(file_id)).deleted
    with pytest.raises(openai.NotFoundError):
        official(lambda client: client.files.retrieve(file_id))
    own.engine.release("file-in-use")
    ended = server.finish(batch)
    assert (ended["status"], ended["input_file_id"]) == ("completed", file_id)
    assert ended["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


@proves(Area.FILES, "An unknown id is 404, whatever it looks like")
@pytest.mark.parametrize("call", ["retrieve", "content", "delete"])
@pytest.mark.parametrize(
    "file_id", [UNKNOWN, "file-abc", "x" * 300], ids=["unknown", "malformed", "long"]
)
def test_unknown_file_returns_404(official: Official, call: str, file_id: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        official(lambda client: getattr(client.files, call)(file_id))
    assert refused.value.code == "not_found"


@proves(Area.FILES, "A filename is shown without its folders")
@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("a.jsonl", "a.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("c:\\data\\b.jsonl", "b.jsonl"),
        ("Größe 水.jsonl", "Größe 水.jsonl"),
    ],
    ids=["plain", "folders", "backslashes", "unicode"],
)
def test_filename_is_shown_without_directories(server: Server, sent: str, shown: str) -> None:
    assert server.upload(requests(1), sent)["filename"] == shown


@proves(Area.FILES, "A filename in the encoded form `filename*` of RFC 6266")
def test_encoded_filename_is_decoded(server: Server) -> None:
    body = (
        b"--b\r\nContent-Disposition: form-data; name=file; filename*=UTF-8''%E6%B0%B4.jsonl\r\n\r\n"
        + requests(1)
        + b"\r\n--b--\r\n"
    )
    response = server.http.post(
        "/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert response.json()["filename"] == "水.jsonl"


@proves(Area.FILES, "Uploads up to 200 MB; more is 413")
def test_upload_over_limit_returns_413(official: Official, own: Own) -> None:
    max_bytes = int(own.stack.settings["LOWTIDE_MAX_FILE_BYTES"])
    with pytest.raises(openai.APIStatusError) as refused:
        official(lambda client: client.files.create(file=b"x" * (max_bytes + 1), purpose="batch"))
    assert (refused.value.status_code, refused.value.param) == (413, "file")
    assert refused.value.code == "payload_too_large"


@proves(Area.FILES, "Uploads up to 200 MB; more is 413")
def test_upload_at_limit_is_accepted(official: Official, own: Own) -> None:
    max_bytes = int(own.stack.settings["LOWTIDE_MAX_FILE_BYTES"])
    line = requests(1)
    uploaded = official(
        lambda client: client.files.create(
            file=line + b"\n" * (max_bytes - len(line)), purpose="batch"
        )
    )
    assert (uploaded.bytes, uploaded.status) == (max_bytes, "processed")


@proves(Area.FILES, "A form that is no upload is refused, and nothing stays of it")
@pytest.mark.parametrize(
    ("sent", "status", "param"),
    [
        pytest.param({"files": {"other": b"x"}}, 400, "file", id="no-file"),
        pytest.param({"json": {"purpose": "batch"}}, 415, None, id="json"),
        pytest.param(
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
            415,
            None,
            id="no-boundary",
        ),
        pytest.param(
            {"files": {"file": b"x"}, "headers": {"Content-Encoding": "gzip"}},
            415,
            None,
            id="encoded-body",
        ),
        pytest.param({"files": {"file": gzip.compress(requests(1))}}, 415, "file", id="gzip-file"),
        pytest.param(
            {
                "content": b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nhalf",
                "headers": {"Content-Type": "multipart/form-data; boundary=b"},
            },
            400,
            "file",
            id="cut-off",
        ),
    ],
)
def test_invalid_form_is_refused(
    server: Server, sent: dict[str, Any], status: int, param: str | None
) -> None:
    response = server.http.post("/v1/files", **sent)
    assert response.status_code == status
    assert check_error(response.json())["param"] == param


@proves(
    Area.FILES,
    "The purposes `assistants`, `evals`, `fine-tune`, `user_data`, `vision`",
    supported=False,
)
@pytest.mark.parametrize("purpose", ["assistants", "evals", "fine-tune", "user_data", "vision"])
def test_other_purposes_are_refused(official: Official, purpose: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        official(lambda client: client.files.create(file=b"{}", purpose=purpose))
    assert (refused.value.code, refused.value.param) == ("invalid_purpose", "purpose")
