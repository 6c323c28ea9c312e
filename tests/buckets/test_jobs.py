"""Batches from bucket to bucket, through the functions and a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import text

from lowtide.buckets import remote
from lowtide.cli.batch_view import facts
from lowtide.cli.client import Terms, submit_url
from lowtide.core.ids import format_batch_id
from lowtide.files.service import Upload
from lowtide.pipeline import exports, imports
from lowtide.settings import PREFIX
from lowtide.status.snapshot_store import SnapshotStore
from tests.buckets.test_urls import ATTACKS
from tests.conftest import API_KEY
from tests.http.forms import line, upload
from tests.worlds import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.core.ids import BatchId
    from tests.buckets.conftest import Jobs, Stub

LINES = [line(f"line-{number}") for number in range(6)]
CONTENT = b"".join(LINES)
INPUT = "s3://bucket/in/day/a.jsonl"


def _error(response: Any, param: str) -> str:
    assert response.status_code == 400, response.text
    error = response.json["error"]
    assert error["param"] == param
    return str(error["code"] or error["message"])


def _problem(jobs: Jobs, batch: BatchId) -> tuple[str, str]:
    """Return the code and the message of the one problem of a failed batch."""
    body = jobs.batch(batch)
    assert body["status"] == "failed"
    (problem,) = body["errors"]["data"]
    assert problem["param"] == "input_url"
    return problem["code"], problem["message"]


def _files(jobs: Jobs) -> list[Any]:
    return jobs.world.rows("SELECT * FROM files")


def _let_lease_expire(jobs: Jobs) -> None:
    jobs.world.run("UPDATE batches SET transfer_until = now()")


def test_whole_job_from_bucket_to_bucket(jobs: Jobs) -> None:
    jobs.put("in/day/a.jsonl", CONTENT)
    created = jobs.post(input_url=INPUT, output_url="s3://bucket/out/day").json
    assert created["status"] == "validating"
    url = "s3://bucket/out/day/"
    assert created["x_lowtide"]["input_url"] == INPUT
    assert created["x_lowtide"]["export"] == {"url": url, "state": "pending", "error": None}
    file = created["input_file_id"]
    assert jobs.api("GET", f"/v1/files/{file}").status_code == 404
    (batch,) = [row.id for row in jobs.world.rows("SELECT id FROM batches")]

    assert jobs.split(batch) == 204
    body = jobs.batch(batch)
    assert (body["status"], body["request_counts"]["total"]) == ("in_progress", 6)
    assert body["input_file_id"] == file
    stored = jobs.api("GET", f"/v1/files/{file}").json
    assert (stored["filename"], stored["bytes"]) == ("a.jsonl", len(CONTENT))
    assert stored["status"] == "processed"
    assert jobs.api("GET", f"/v1/files/{file}/content").data == CONTENT

    jobs.run(batch, failing=2)
    assert jobs.batch(batch)["x_lowtide"]["export"]["state"] == "pending"
    jobs.export(batch)
    body = jobs.batch(batch)
    assert body["x_lowtide"]["export"] == {"url": url, "state": "completed", "error": None}
    name = format_batch_id(batch)
    assert jobs.names("out") == [f"out/day/{name}_error.jsonl", f"out/day/{name}_output.jsonl"]
    for role in ("output", "error"):
        content = jobs.api("GET", f"/v1/files/{body[f'{role}_file_id']}/content").data
        assert jobs.get(f"out/day/{name}_{role}.jsonl") == content
        assert len(content.splitlines()) == {"output": 4, "error": 2}[role]


def test_import_with_zero_retention_is_encrypted_and_its_export_is_plain(jobs: Jobs) -> None:
    jobs.put("in/day/a.jsonl", CONTENT)
    batch = jobs.create(input_url=INPUT, output_url="s3://bucket/out/", zero_retention=True)
    assert jobs.batch(batch)["x_lowtide"]["zero_retention"] is True
    assert jobs.split(batch) == 204
    file = jobs.batch(batch)["input_file_id"]
    assert jobs.api("GET", f"/v1/files/{file}").json["x_lowtide"]["zero_retention"] is True
    assert jobs.api("GET", f"/v1/files/{file}/content").data == CONTENT
    assert not _stored_in_plain(jobs, b"line-")

    # The batch still reads its input.
    assert jobs.api("DELETE", f"/v1/files/{file}").status_code == 200
    jobs.sweep_objects()
    assert jobs.world.value("SELECT count(*) FROM data_keys") == 2
    jobs.run(batch)
    jobs.export(batch)
    content = jobs.get(f"out/{format_batch_id(batch)}_output.jsonl")
    assert len(content.splitlines()) == 6
    assert not _stored_in_plain(jobs, b"line-")
    jobs.sweep_objects()
    assert jobs.world.value("SELECT count(*) FROM data_keys WHERE id = :batch", batch=batch) == 1
    assert jobs.world.value("SELECT count(*) FROM data_keys") == 1


def _stored_in_plain(jobs: Jobs, text: bytes) -> list[str]:
    keys = jobs.api.object_keys()
    return [key for key in keys if text in (jobs.api.objects / key).read_bytes()]


def test_command_submits_url(jobs: Jobs) -> None:
    application = jobs.api.clients["create_batch"].application
    http: Any = httpx.Client(transport=httpx.WSGITransport(app=application))
    with OpenAI(base_url="http://api/v1", api_key=API_KEY, http_client=http) as client:
        batch = submit_url(
            client,
            INPUT,
            Terms("2h", "ada", "s3://bucket/out/", priority=-2),
            endpoint="/v1/embeddings",
        )
    body = jobs.api("GET", f"/v1/batches/{batch.id}").json
    assert (body["endpoint"], body["completion_window"]) == ("/v1/embeddings", "2h")
    assert (body["x_lowtide"]["user"], body["x_lowtide"]["priority"]) == ("ada", -2)
    shown = facts(body)
    assert shown["priority"] == -2
    assert (shown["imported from"], shown["export"]) == (INPUT, "s3://bucket/out/ pending")


def test_uploaded_file_is_exported_too(jobs: Jobs) -> None:
    batch = jobs.create(input_file_id=upload(jobs.api)["id"], output_url="s3://bucket/out/")
    assert jobs.split(batch) == 204
    jobs.run(batch)
    jobs.export(batch)
    assert jobs.names("out") == [f"out/{format_batch_id(batch)}_output.jsonl"]


def test_large_object_is_read_in_ranges(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WINDOW", 100)
    jobs.put("in/day/a.jsonl", CONTENT)
    batch = jobs.create(input_url=INPUT)
    assert jobs.split(batch) == 204
    (file,) = _files(jobs)
    assert bytes(file.sha256) == hashlib.sha256(CONTENT).digest()
    assert jobs.batch(batch)["status"] == "in_progress"


def test_problems_of_imported_lines_fail_batch(jobs: Jobs) -> None:
    jobs.put("in/day/a.jsonl", CONTENT + b"{}\n")
    batch = jobs.create(input_url=INPUT)
    assert jobs.split(batch) == 204
    body = jobs.batch(batch)
    assert body["status"] == "failed"
    assert {problem["line"] for problem in body["errors"]["data"]} == {7}
    assert jobs.api("GET", f"/v1/files/{body['input_file_id']}").json["status"] == "error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input_file_id"),
        ({"input_file_id": "file-" + "0" * 32, "input_url": INPUT}, "input_url"),
        ({"input_url": ""}, "input_url"),
        ({"input_url": INPUT, "endpoint": None}, "endpoint"),
        ({"input_url": "s3://bucket/in/"}, "input_url"),
        ({"input_url": "s3://bucket/out/a"}, "input_url"),
        ({"input_url": INPUT, "output_url": "s3://bucket/in/"}, "output_url"),
        ({"input_url": INPUT, "output_url": "s3://bucket/"}, "output_url"),
        ({"input_url": INPUT, "output_url": "s3://bucket/out/../in"}, "output_url"),
    ],
)
def test_body_without_one_allowed_input_is_rejected(
    jobs: Jobs, body: dict[str, Any], param: str
) -> None:
    _error(jobs.post(**body), param)
    assert jobs.world.rows("SELECT id FROM batches") == []


@pytest.mark.parametrize("url", ATTACKS.values(), ids=ATTACKS)
def test_attack_is_rejected_before_any_fetch(jobs: Jobs, stub: Stub, url: str) -> None:
    for attack in (url, url.replace("acme", "stub-bucket")):
        code = _error(jobs.post(input_url=attack), "input_url")
        assert code in {"invalid_bucket_url", "bucket_not_registered"}
    assert stub.requests == []
    assert jobs.world.rows("SELECT id FROM batches") == []


def test_bucket_of_another_tenant_is_not_usable(jobs: Jobs) -> None:
    jobs.put("in/day/a.jsonl", CONTENT)
    jobs.tenant("theirs", "lt_theirs")
    jobs.register("s3://bucket/theirs/", tenant="theirs")
    with jobs.acting_as("lt_theirs"):
        assert _error(jobs.post(input_url=INPUT), "input_url") == "bucket_not_registered"
        body = {"input_url": "s3://bucket/theirs/a", "output_url": "s3://bucket/out/"}
        assert _error(jobs.post(**body), "output_url") == "bucket_not_registered"
    url = "s3://bucket/theirs/a"
    assert _error(jobs.post(input_url=url), "input_url") == "bucket_not_registered"


def test_removed_registration_ends_import(jobs: Jobs, stub: Stub) -> None:
    stub.objects["/stub-bucket/a"] = CONTENT
    batch = jobs.create(input_url="s3://stub-bucket/a")
    with jobs.world.database.engine("operator").begin() as connection:
        connection.execute(text("DELETE FROM buckets"))
    assert jobs.split(batch) == 204
    assert _problem(jobs, batch)[0] == "bucket_not_registered"
    assert stub.requests == []


def _missing(_: Jobs, stub: Stub) -> None:
    stub.objects.clear()


def _denied(_: Jobs, stub: Stub) -> None:
    stub.status = 403


def _large(_: Jobs, stub: Stub) -> None:
    stub.objects["/stub-bucket/a"] = b"x" * 100_001


def _packed(_: Jobs, stub: Stub) -> None:
    stub.objects["/stub-bucket/a"] = b"\x1f\x8b" + CONTENT


def _unknown_credentials(jobs: Jobs, _: Stub) -> None:
    with jobs.world.database.engine("owner").begin() as connection:
        connection.execute(text("TRUNCATE buckets"))
    jobs.register("s3://stub-bucket/", credentials="other")


def _full(jobs: Jobs, _: Stub) -> None:
    with jobs.world.database.engine("owner").begin() as connection:
        connection.execute(text("UPDATE tenants SET max_queued_lines = 5"))


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (_missing, "bucket_not_found"),
        (_denied, "bucket_access_denied"),
        (_large, "payload_too_large"),
        (_packed, "packed_file"),
        (_unknown_credentials, "bucket_not_set_up"),
        (_full, "too_many_lines"),
    ],
)
def test_import_that_cannot_succeed_fails_batch(
    jobs: Jobs, stub: Stub, prepare: Callable[[Jobs, Stub], None], code: str
) -> None:
    stub.objects["/stub-bucket/a"] = CONTENT
    batch = jobs.create(input_url="s3://stub-bucket/a")
    try:
        prepare(jobs, stub)
        assert jobs.split(batch) == 204
    finally:
        with jobs.world.database.engine("owner").begin() as connection:
            connection.execute(text("UPDATE tenants SET max_queued_lines = NULL"))
    found, message = _problem(jobs, batch)
    assert found == code
    assert "s3://stub-bucket/a" in message
    assert "127.0.0.1" not in message
    assert (_files(jobs), jobs.api.object_keys()) == ([], set())


def test_object_changed_while_it_is_read_fails_batch(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_WINDOW", 100)
    jobs.put("in/day/a.jsonl", CONTENT)
    real = Upload.write

    def write(self: Upload, chunk: bytes) -> None:
        jobs.put("in/day/a.jsonl", CONTENT[::-1])
        real(self, chunk)

    monkeypatch.setattr(Upload, "write", write)
    batch = jobs.create(input_url=INPUT)
    assert jobs.split(batch) == 204
    code, message = _problem(jobs, batch)
    assert (code, INPUT in message) == ("bucket_object_changed", True)
    assert (_files(jobs), jobs.api.object_keys()) == ([], set())


def test_unreachable_bucket_is_tried_again_until_the_deadline(jobs: Jobs, stub: Stub) -> None:
    stub.objects["/stub-bucket/a"] = CONTENT
    batch = jobs.create(input_url="s3://stub-bucket/a")
    late = jobs.create(input_url="s3://stub-bucket/a")
    jobs.world.run("UPDATE batches SET deadline = now() WHERE id = :id", id=late)
    stub.status = 500
    assert jobs.split(batch) == 503
    assert jobs.batch(batch)["status"] == "validating"
    assert jobs.split(late) == 204
    assert _problem(jobs, late)[0] == "input_url_unavailable"
    stub.status = None
    assert jobs.split(batch) == 204
    assert jobs.batch(batch)["status"] == "in_progress"


def test_second_delivery_leaves_running_import_alone(jobs: Jobs, stub: Stub) -> None:
    stub.objects["/stub-bucket/a"] = CONTENT
    batch = jobs.create(input_url="s3://stub-bucket/a")
    jobs.world.run("UPDATE batches SET transfer_until = now() + interval '1 min'")
    assert jobs.split(batch) == 204
    assert (stub.requests, jobs.batch(batch)["status"]) == ([], "validating")
    _let_lease_expire(jobs)
    for _ in range(2):
        assert jobs.split(batch) == 204
    assert jobs.batch(batch)["status"] == "in_progress"
    (file,) = _files(jobs)
    assert jobs.api.object_keys() == {file.object_key, file.index_key}


def test_running_import_does_not_count_as_waiting_for_split(jobs: Jobs) -> None:
    jobs.create(input_url=INPUT)
    snapshots = SnapshotStore(jobs.world.worker)
    assert snapshots.read().unsplit.count == 1
    jobs.world.run("UPDATE batches SET transfer_until = now() + interval '1 min'")
    assert snapshots.read().unsplit.count == 0
    _let_lease_expire(jobs)
    assert snapshots.read().unsplit.count == 1


def test_of_two_imports_at_once_one_becomes_the_file(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was frozen goes on after another one has taken over."""
    jobs.put("in/day/a.jsonl", CONTENT)
    batch = jobs.create(input_url=INPUT)
    real = Upload.finish

    def finish(self: Upload, *arguments: Any) -> Any:
        monkeypatch.setattr(Upload, "finish", real)
        jobs.put("in/day/a.jsonl", b"".join(LINES[:3]))
        _let_lease_expire(jobs)
        assert jobs.split(batch) == 204
        return real(self, *arguments)

    monkeypatch.setattr(Upload, "finish", finish)
    assert jobs.split(batch) == 204
    (file,) = _files(jobs)
    assert (file.lines, jobs.batch(batch)["request_counts"]["total"]) == (3, 3)
    assert jobs.api.object_keys() == {file.object_key, file.index_key}
    jobs.sweep_objects()
    assert jobs.api.object_keys() == {file.object_key, file.index_key}


def test_cancelled_batch_ends_its_import(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WINDOW", 100)
    monkeypatch.setattr(imports, "RENEW_SECONDS", 0.0)
    jobs.put("in/day/a.jsonl", CONTENT)
    batch = jobs.create(input_url=INPUT)
    pieces: list[bytes] = []
    real = Upload.write

    def write(self: Upload, chunk: bytes) -> None:
        pieces.append(chunk)
        if len(pieces) == 1:
            path = f"/v1/batches/{format_batch_id(batch)}/cancel"
            assert jobs.api("POST", path).status_code == 200
        real(self, chunk)

    monkeypatch.setattr(Upload, "write", write)
    assert jobs.split(batch) == 204
    assert len(pieces) == 1
    assert (_files(jobs), jobs.api.object_keys()) == ([], set())
    assert jobs.batch(batch)["status"] == "cancelling"


_KILLED = """
import sys
from lowtide.app import App
from lowtide.buckets import remote
from lowtide.core.ids import parse_batch_id
from lowtide.settings import read_settings
remote._WINDOW = 100
App(read_settings(), name="split").importer.prepare(parse_batch_id(sys.argv[1]))
"""


def test_killed_import_leaves_one_file_and_no_object_behind(jobs: Jobs, stub: Stub) -> None:
    stub.objects["/stub-bucket/a"] = CONTENT
    stub.held = threading.Event()
    batch = jobs.create(input_url="s3://stub-bucket/a")
    environment = os.environ | {PREFIX + name: value for name, value in jobs.settings.items()}
    arguments = [sys.executable, "-c", _KILLED, format_batch_id(batch)]
    process = subprocess.Popen(arguments, env=environment)
    assert stub.reached.wait(PATIENCE)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    assert jobs.batch(batch)["status"] == "validating"
    assert _files(jobs) == []
    assert len(jobs.world.rows("SELECT * FROM orphan_objects")) == 2
    stub.held.set()
    stub.held = None
    assert jobs.split(batch) == 204, "the lease of the killed process has not ended"
    assert _files(jobs) == []
    _let_lease_expire(jobs)
    assert jobs.split(batch) == 204
    assert jobs.batch(batch)["status"] == "in_progress"
    (file,) = _files(jobs)
    jobs.sweep_objects()
    whole = {key for key in jobs.api.object_keys() if "#" not in key}
    assert whole == {file.object_key, file.index_key}
    assert jobs.world.rows("SELECT * FROM orphan_objects") == []


def _finished(jobs: Jobs, output_url: str) -> BatchId:
    batch = jobs.create(input_file_id=upload(jobs.api, CONTENT)["id"], output_url=output_url)
    assert jobs.split(batch) == 204
    jobs.run(batch)
    return batch


def test_failed_export_is_tried_again_with_its_error_shown(jobs: Jobs, stub: Stub) -> None:
    batch = _finished(jobs, "s3://stub-bucket/out")
    stub.status = 403
    jobs.export(batch)
    export = jobs.batch(batch)["x_lowtide"]["export"]
    assert export["state"] == "pending"
    assert "denied" in export["error"]
    assert "127.0.0.1" not in export["error"]
    jobs.world.sweep(stalled_after=30)
    assert jobs.world.events(batch)["dev.lowtide.export.requested"] == 0, "it waits 30 s"
    stub.status = None
    jobs.world.run("UPDATE batches SET export_next_at = now()")
    jobs.export(batch)
    assert jobs.batch(batch)["x_lowtide"]["export"]["state"] == "completed"
    path = f"/stub-bucket/out/{format_batch_id(batch)}_output.jsonl"
    assert [json.loads(each)["custom_id"] for each in stub.objects[path].splitlines()] == [
        f"line-{number}" for number in range(6)
    ]


def test_export_fails_a_day_after_the_batch_has_ended(jobs: Jobs, stub: Stub) -> None:
    batch = _finished(jobs, "s3://stub-bucket/out")
    stub.status = 403
    jobs.world.run("UPDATE batches SET completed_at = now() - interval '1 day'")
    jobs.export(batch)
    export = jobs.batch(batch)["x_lowtide"]["export"]
    assert export["state"] == "failed"
    assert "denied" in export["error"]
    jobs.world.run("UPDATE batches SET export_next_at = now()")
    jobs.world.sweep()
    assert jobs.world.events(batch)["dev.lowtide.export.requested"] == 0


def test_export_of_deleted_file_fails_at_once(jobs: Jobs) -> None:
    batch = _finished(jobs, "s3://bucket/out/")
    file = jobs.batch(batch)["output_file_id"]
    assert jobs.api("DELETE", f"/v1/files/{file}").status_code == 200
    jobs.export(batch)
    export = jobs.batch(batch)["x_lowtide"]["export"]
    assert (export["state"], "was deleted" in export["error"]) == ("failed", True)


def test_repeated_export_changes_nothing(jobs: Jobs) -> None:
    batch = _finished(jobs, "s3://bucket/out/")
    jobs.export(batch)
    path = f"out/{format_batch_id(batch)}_output.jsonl"
    content = jobs.get(path)
    jobs.world.run("UPDATE batches SET export_state = 'pending', export_next_at = now()")
    jobs.export(batch)
    assert (jobs.get(path), jobs.names("out")) == (content, [path])


def test_aborted_export_leaves_no_object_and_is_repeated(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _finished(jobs, "s3://bucket/out/")
    monkeypatch.setattr(exports, "RENEW_SECONDS", -1.0)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exports.ExportStore, "renew", die)
        with pytest.raises(KeyboardInterrupt):
            jobs.export(batch)
    assert jobs.names("out") == []
    assert jobs.batch(batch)["x_lowtide"]["export"]["state"] == "pending"
    jobs.world.sweep()
    assert jobs.world.events(batch)["dev.lowtide.export.requested"] == 0, "its lease goes on"
    jobs.world.run("UPDATE batches SET transfer_until = now(), export_next_at = now()")
    jobs.export(batch)
    assert jobs.names("out") == [f"out/{format_batch_id(batch)}_output.jsonl"]


def test_rejected_batch_has_nothing_to_export(jobs: Jobs) -> None:
    jobs.put("in/day/a.jsonl", b"{}\n")
    batch = jobs.create(input_url=INPUT, output_url="s3://bucket/out/")
    assert jobs.split(batch) == 204
    jobs.export(batch)
    assert jobs.batch(batch)["x_lowtide"]["export"]["state"] == "completed"
    assert jobs.names("out") == []
