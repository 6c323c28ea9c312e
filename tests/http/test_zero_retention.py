"""Zero retention: nothing of it is in plain in the database, the store or the logs, at any time."""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from lowtide.app import App
from lowtide.batches.erasure import Eraser
from lowtide.core.ids import DEFAULT_TENANT, BatchId, parse_batch_id, parse_file_id
from lowtide.core.pools import Pool
from lowtide.core.scopes import Role
from lowtide.engines.outcomes import Answered, Unanswered, Usage
from lowtide.objects.data_keys import destroy_keys
from lowtide.settings import Settings
from lowtide.tenants.sign_in import Principal
from lowtide.worker import build
from tests.http.conftest import MASTER_KEY
from tests.http.forms import form, line, part, post
from tests.retention.days import retention
from tests.worker.workers import ScriptedEngine
from tests.worlds import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowtide.engines.model import EngineRequest
    from lowtide.engines.outcomes import Outcome
    from tests.http.conftest import Api
    from tests.worlds import World

# Not so short that encrypted bytes contain it by chance.
MARKER = "ZanzibarCoffee"
LONG = 1_500_000
HIDDEN = [MARKER, MARKER.encode().hex(), b64encode(MARKER.encode()).decode()[:-4]]


@dataclass
class Logs(logging.Handler):
    """All log records as text, with their fields and exceptions."""

    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.DEBUG)

    def __hash__(self) -> int:
        return id(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.getMessage()} {record.__dict__}")


@dataclass
class Stage:
    """The functions, a worker, and a search of everything that they store or log."""

    api: Api
    world: World
    app: App
    logs: Logs

    def traces(self) -> list[str]:
        """Return where the marker is now."""
        rows = {
            table
            for table, contents in self.world.contents().items()
            if any(word in row for row in contents for word in HIDDEN)
        }
        objects = {
            key.split("/")[0]
            for key in self.api.object_keys()
            if any(word.encode() in (self.api.objects / key).read_bytes() for word in HIDDEN)
        }
        logs = {"logs" for text in self.logs.texts if any(word in text for word in HIDDEN)}
        return sorted(rows | objects | logs)

    def upload(self, content: bytes, *, sealed: bool) -> dict[str, Any]:
        fields = [part("purpose", b"batch")]
        if sealed:
            fields.append(part("zero_retention", b"true"))
        response = post(self.api, form(*fields, part("file", content, "in.jsonl")))
        assert response.status_code == 200, response.text
        file: dict[str, Any] = response.json
        assert file["x_lowtide"] == {"zero_retention": sealed}
        return file

    def create(self, file: str, **more: Any) -> BatchId:
        body = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        response = self.api("POST", "/v1/batches", json=body | more)
        assert response.status_code == 200, response.text
        batch = parse_batch_id(response.json["id"])
        assert batch is not None
        return batch

    def work(self, batch: BatchId) -> None:
        """Run a worker until nothing of the batch waits or runs."""

        async def run() -> None:
            worker = self.app.build_worker(Pool.SPOT)
            running = asyncio.create_task(worker.run())
            await asyncio.to_thread(
                eventually, lambda: self.world.row(batch).drained_at is not None
            )
            worker.stop()
            await asyncio.wait_for(running, 30)

        asyncio.run(run())

    def get(self, path: str) -> Any:
        return self.api("GET", path)

    def content(self, file: str | None) -> str:
        response = self.get(f"/v1/files/{file}/content")
        assert response.status_code == 200, response.text
        return str(response.text)

    def tick(self) -> None:
        """Delete what a tick deletes."""
        keys = self.app.scheduler._sweeps.orphans(200).keys
        self.app.objects.delete(keys)
        self.app.scheduler._sweeps.forget_orphans(keys)

    def split(self, batch: BatchId) -> int:
        """Split every segment; return how many there are."""
        self.app.splitter.split(batch)
        segments = self._segments(batch)
        for number in segments[1:]:
            self.app.splitter.split_segment(batch, number)
        return len(segments)

    def finalize(self, batch: BatchId) -> None:
        """Finalize every segment."""
        self.app.finalizer.finalize(batch)
        for number in self._segments(batch):
            self.app.finalizer.finalize(batch, number)

    def _segments(self, batch: BatchId) -> list[int]:
        rows = self.world.rows(
            "SELECT number FROM segments WHERE batch_id = :batch ORDER BY number", batch=batch
        )
        return [row.number for row in rows]

    def an_hour_later(self) -> None:
        """Let every orphan become due, and the scheduler delete what nothing owns."""
        self.world.run("UPDATE orphan_objects SET due_at = now()")
        self.tick()

    def forget(self) -> None:
        """Let a minute pass: the caches of all processes are empty."""
        for app in (self.app, *(self.api.app(name) for name in self.api.clients)):
            app.data_keys._cache.clear()


@pytest.fixture
def stage(api: Api, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    settings = Settings(
        database_url=SecretStr(world.database.url("worker")),
        object_store_url=f"file://{api.objects}",
        master_key=SecretStr(MASTER_KEY),
        max_attempts=2,
        retry_base=0.001,
        retry_cap=0.001,
        worker_poll_initial=0.01,
        worker_poll_cap=0.02,
    )
    app = App(settings, name="worker")
    logs = Logs()
    root = logging.getLogger()
    level = root.level
    root.addHandler(logs)
    root.setLevel(logging.DEBUG)
    stage = Stage(api, world, app, logs)
    monkeypatch.setattr(build, "build_engine", lambda *_: ScriptedEngine(answer_of(stage)))
    yield stage
    root.removeHandler(logs)
    root.setLevel(level)
    app.close(5)


SEEN: list[Sequence[str]] = []


def answer_of(stage: Stage) -> Any:
    """Return an engine's answers: each repeats the prompt, and traces are searched meanwhile."""

    def answer(request: EngineRequest) -> Outcome:
        prompt = json.loads(request.body)
        SEEN.append(stage.traces())
        match prompt["kind"]:
            case "long":
                body = json.dumps({"echo": prompt["input"] + "x" * LONG}).encode()
                return Answered(200, body, "req", Usage(1, 2))
            case "refused":
                error = {"error": {"message": f"{prompt['input']} is not allowed"}}
                return Answered(400, json.dumps(error).encode(), "req")
            case "failing":
                error = {"error": {"message": f"{prompt['input']} is too much"}}
                return Answered(500, json.dumps(error).encode(), "req")
            case "broken":
                return Unanswered("engine_error", f"The engine said {prompt['input']}")
        return Answered(200, json.dumps({"echo": prompt["input"]}).encode(), "req", Usage(1, 2))

    return answer


KINDS = ("plain", "long", "refused", "plain", "failing", "plain", "broken", "plain")
CONTENT = b"".join(
    line(f"id-{number}", kind=kind, input=f"{MARKER} {number}")
    for number, kind in enumerate(KINDS, 1)
)


def run_batch(stage: Stage, *, sealed: bool) -> tuple[dict[str, Any], BatchId]:
    """Run a batch to its end; return its file and its id. SEEN has where the marker was."""
    SEEN.clear()
    file = stage.upload(CONTENT, sealed=sealed)
    SEEN.append(stage.traces())
    batch = stage.create(file["id"])
    stage.split(batch)
    SEEN.append(stage.traces())
    stage.work(batch)
    SEEN.append(stage.traces())
    return file, batch


def test_the_search_finds_a_batch_without_zero_retention(stage: Stage) -> None:
    _, batch = run_batch(stage, sealed=False)
    stage.app.finalizer.finalize(batch)
    assert SEEN[0] == ["files"]
    assert {"files", "results", "dead_letters", "request_events"} <= set(stage.traces())
    assert not stage.get(f"/v1/batches/batch_{batch.hex}").json["x_lowtide"]["zero_retention"]


def test_nothing_of_zero_retention_is_stored_or_logged_in_plain(stage: Stage) -> None:
    _, batch = run_batch(stage, sealed=True)
    running = stage.get(f"/v1/batches/batch_{batch.hex}/results")
    stage.app.finalizer.finalize(batch)
    ended = stage.get(f"/v1/batches/batch_{batch.hex}")
    assert ended.json["x_lowtide"]["zero_retention"] is True
    assert stage.traces() == []
    assert len(SEEN) >= 3 + len(KINDS)
    assert [traces for traces in SEEN if traces] == []
    output = stage.content(ended.json["output_file_id"])
    error = stage.content(ended.json["error_file_id"])
    for number, kind in enumerate(KINDS, 1):
        expected = output if kind in {"plain", "long"} else error
        assert f"{MARKER} {number}" in expected, kind
        assert f"{MARKER} {number}" in running.text, kind
    assert "is not allowed" in error
    assert "The engine said" in error
    assert "lowtide-sealed" not in output + error + running.text
    long = json.loads(output.splitlines()[1])["response"]["body"]["echo"]
    assert long == f"{MARKER} 2" + "x" * LONG


def test_readers_of_a_batch_see_its_texts(stage: Stage) -> None:
    _, batch = run_batch(stage, sealed=True)
    path = f"/v1/batches/batch_{batch.hex}"
    messages = [each["error_message"] for each in stage.get(f"{path}/requests").json["data"]]
    assert messages[6] == f"The engine said {MARKER} 7"
    letters = stage.get(f"/v1/dead_letters?batch_id=batch_{batch.hex}").json["data"]
    assert f"The engine said {MARKER} 7" in [letter["error_message"] for letter in letters]
    letter = stage.get(f"/v1/dead_letters/batch_req_{batch.hex}{7:08x}")
    assert f"The engine said {MARKER} 7" in letter.text
    assert f"{MARKER} 7" in letter.json["input"]["body"]["input"]
    browser = stage.app.services.browser
    principal = Principal("operator", Role.OPERATOR)
    shown = browser.line(principal, batch, 2)
    assert (shown.record.body or b"").startswith(f'{{"echo": "{MARKER} 2xxx'.encode())
    assert shown.record.body_bytes == len(json.dumps({"echo": f"{MARKER} 2" + "x" * LONG}))
    assert MARKER.encode() in (shown.input or b"")
    drawer = browser.line(principal, batch, 7).record
    assert drawer.state.error_message == f"The engine said {MARKER} 7"
    assert {note.detail for note in drawer.notes} == {f"The engine said {MARKER} 7"}
    lines, _ = browser.lines(principal, batch, None, after=0, limit=10)
    assert lines[6].error_message == f"The engine said {MARKER} 7"
    errors = browser.details(principal, batch).errors
    assert {(error.code, error.message) for error in errors} == {
        ("http_400", ""), ("http_500", ""), ("engine_error", "")
    }  # fmt: skip


def test_after_destruction_nothing_can_be_read(stage: Stage) -> None:
    file, batch = run_batch(stage, sealed=True)
    stage.app.finalizer.finalize(batch)
    ended = stage.get(f"/v1/batches/batch_{batch.hex}").json
    with stage.app.database.begin() as connection:
        destroy_keys(connection, [batch])
    assert stage.api("DELETE", f"/v1/files/{file['id']}").status_code == 200
    stage.forget()
    for path in (
        f"/v1/files/{ended['output_file_id']}/content",
        f"/v1/files/{ended['error_file_id']}/content",
        f"/v1/batches/batch_{batch.hex}/results",
    ):
        response = stage.get(path)
        assert response.status_code == 404, path
        assert response.json["error"]["code"] == "data_key_destroyed"
        assert "zero retention" in response.json["error"]["message"]
    assert stage.get(f"/v1/files/{file['id']}/content").status_code == 404
    requests = stage.get(f"/v1/batches/batch_{batch.hex}/requests")
    assert requests.status_code == 200
    assert "has been destroyed" in requests.json["data"][6]["error_message"]
    assert MARKER not in requests.text
    assert stage.world.value("SELECT count(*) FROM data_keys") == 0


def test_the_key_of_an_input_lives_as_long_as_a_batch_reads_it(stage: Stage) -> None:
    file = stage.upload(CONTENT, sealed=True)
    batch = stage.create(file["id"])
    assert stage.api("DELETE", f"/v1/files/{file['id']}").status_code == 200
    stage.tick()
    stage.forget()
    stage.app.splitter.split(batch)
    stage.work(batch)
    stage.app.finalizer.finalize(batch)
    assert keys(stage) == {parse_file_id(file["id"]), batch}
    stage.tick()
    assert keys(stage) == {batch}
    ended = stage.get(f"/v1/batches/batch_{batch.hex}").json
    for name in ("output_file_id", "error_file_id"):
        assert keys(stage) == {batch}
        assert stage.api("DELETE", f"/v1/files/{ended[name]}").status_code == 200
    assert keys(stage) == set()


def test_an_expired_file_takes_its_key_with_it(stage: Stage) -> None:
    file = stage.upload(CONTENT, sealed=True)
    assert keys(stage) == {parse_file_id(file["id"])}
    stage.world.run("UPDATE files SET expires_at = now() - interval '1 s'")
    stage.tick()
    assert keys(stage) == set()
    assert stage.api.object_keys() == set()


def keys(stage: Stage) -> set[Any]:
    return {row.id for row in stage.world.rows("SELECT id FROM data_keys")}


def test_an_upload_in_parts_is_encrypted(stage: Stage) -> None:
    body = {"bytes": len(CONTENT), "filename": "in.jsonl", "mime_type": "application/jsonl"}
    body |= {"purpose": "batch", "zero_retention": True}
    upload = stage.api("POST", "/v1/uploads", json=body).json["id"]
    parts = []
    for data in (CONTENT[:100], CONTENT[100:]):
        added = post(stage.api, form(part("data", data, "x")), path=f"/v1/uploads/{upload}/parts")
        parts.append(added.json["id"])
    assert stage.traces() == []
    assert len(keys(stage)) == 1
    completed = stage.api("POST", f"/v1/uploads/{upload}/complete", json={"part_ids": parts})
    file = completed.json["file"]
    assert file["x_lowtide"]["zero_retention"] is True
    assert stage.content(file["id"]) == CONTENT.decode()
    stage.tick()
    assert keys(stage) == {parse_file_id(file["id"])}
    assert stage.traces() == []


def test_a_cancelled_upload_takes_its_key_with_it(stage: Stage) -> None:
    body = {"bytes": 10, "filename": "in.jsonl", "mime_type": "application/jsonl"}
    body |= {"purpose": "batch", "zero_retention": True}
    upload = stage.api("POST", "/v1/uploads", json=body).json["id"]
    assert len(keys(stage)) == 1
    stage.api("POST", f"/v1/uploads/{upload}/cancel")
    assert keys(stage) == set()


def test_a_tenant_may_have_zero_retention_for_all(stage: Stage) -> None:
    before = stage.upload(line("plain"), sealed=False)
    with stage.world.database.engine("owner").begin() as connection:
        connection.execute(text("UPDATE tenants SET zero_retention = true"))
    try:
        response = post(stage.api, form(part("file", CONTENT, "in.jsonl")))
        assert response.json["x_lowtide"]["zero_retention"] is True
        assert stage.traces() == []
        refused = stage.api("POST", "/v1/batches", json={"input_file_id": before["id"]})
        assert refused.status_code == 400
        assert refused.json["error"]["code"] == "input_not_encrypted"
        assert stage.create(response.json["id"])
    finally:
        with stage.world.database.engine("owner").begin() as connection:
            connection.execute(text("UPDATE tenants SET zero_retention = false"))


def test_zero_retention_of_a_plain_file_is_refused_with_the_way_out(stage: Stage) -> None:
    file = stage.upload(line(), sealed=False)
    body = {"input_file_id": file["id"], "zero_retention": True}
    response = stage.api("POST", "/v1/batches", json=body)
    assert response.status_code == 400
    assert "upload it again with zero_retention=true" in response.json["error"]["message"]
    assert response.json["error"]["param"] == "input_file_id"


def test_zero_retention_after_the_file_is_refused(stage: Stage) -> None:
    response = post(
        stage.api, form(part("file", line(), "in.jsonl"), part("zero_retention", b"true"))
    )
    assert response.status_code == 400
    assert "before" in response.json["error"]["message"]


def test_without_a_master_key_zero_retention_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = stage.api.app("upload")
    monkeypatch.delitem(app.__dict__, "data_keys", raising=False)
    monkeypatch.setattr(
        app, "settings", app.settings.model_copy(update={"master_key": SecretStr("")})
    )
    try:
        response = post(
            stage.api, form(part("zero_retention", b"true"), part("file", line(), "in.jsonl"))
        )
    finally:
        app.__dict__.pop("data_keys", None)
    assert response.status_code == 409
    assert response.json["error"]["code"] == "zero_retention_not_available"
    assert "LOWTIDE_MASTER_KEY" in response.json["error"]["message"]


def test_a_rerun_of_zero_retention_has_it_too(stage: Stage) -> None:
    _, batch = run_batch(stage, sealed=True)
    stage.app.finalizer.finalize(batch)
    response = stage.api("POST", "/v1/reruns", json={"batch_id": f"batch_{batch.hex}"})
    assert response.status_code == 200, response.text
    rows = stage.world.rows("SELECT id, zero_retention FROM batches")
    assert all(row.zero_retention for row in rows)
    assert len(rows) == 2
    assert stage.traces() == []
    assert len(keys(stage)) == 4
    assert (
        stage.world.value("SELECT count(*) FROM data_keys WHERE tenant_id <> :t", t=DEFAULT_TENANT)
        == 0
    )


def test_a_batch_of_several_segments_is_encrypted_and_read_by_range(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.api.override(monkeypatch, "upload", segment_lines=3)
    _, batch = run_batch(stage, sealed=True)
    stage.finalize(batch)
    assert stage.world.value("SELECT count(*) FROM segments") == 3
    assert [traces for traces in SEEN if traces] == []
    assert stage.traces() == []
    stage.an_hour_later()
    Eraser(stage.world.worker).erase()
    stage.world.run("UPDATE results SET body = NULL")
    ended = stage.get(f"/v1/batches/batch_{batch.hex}").json
    output = stage.content(ended["output_file_id"])
    error = stage.content(ended["error_file_id"])
    shown = stage.get(f"/v1/batches/batch_{batch.hex}/results").text
    assert sorted(shown.splitlines()) == sorted((output + error).splitlines())
    assert [MARKER in each for each in (output + error).splitlines()] == [True] * len(KINDS)
    principal = Principal("operator", Role.OPERATOR)
    for number, kind in enumerate(KINDS, 1):
        record = stage.app.services.browser.line(principal, batch, number).record
        expected = b"The engine" if kind == "broken" else f"{MARKER} {number}".encode()
        told = (record.body or b"") + (record.state.error_message or "").encode()
        assert expected in told, kind
    letter = stage.get(f"/v1/dead_letters/batch_req_{batch.hex}{5:08x}").text
    assert f"{MARKER} 5 is too much" in letter
    assert stage.get(f"/v1/files/{ended['output_file_id']}").json["x_lowtide"]["zero_retention"]


@pytest.mark.parametrize("lines", [3, 50], ids=["several segments", "one segment"])
def test_files_outlive_the_records_of_their_orphans_but_not_their_batch(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    stage.api.override(monkeypatch, "upload", segment_lines=lines)
    file, batch = run_batch(stage, sealed=True)
    stage.finalize(batch)
    stage.an_hour_later()
    assert stage.world.value("SELECT count(*) FROM orphan_objects") == 0
    ended = stage.get(f"/v1/batches/batch_{batch.hex}").json
    outputs = [ended["output_file_id"], ended["error_file_id"]]
    for each in outputs:
        assert MARKER in stage.content(each)
    for each in (file["id"], *outputs):
        assert stage.api("DELETE", f"/v1/files/{each}").status_code == 200
    Eraser(stage.world.worker).erase()
    stage.an_hour_later()
    assert stage.api.object_keys() == set()
    assert keys(stage) == set()
    response = stage.get(f"/v1/batches/batch_{batch.hex}/results")
    assert response.json["error"]["code"] == "data_key_destroyed"


def test_the_end_of_retention_destroys_the_key_at_once(stage: Stage) -> None:
    file, batch = run_batch(stage, sealed=True)
    stage.finalize(batch)
    ended = stage.get(f"/v1/batches/batch_{batch.hex}").json
    stage.world.run("UPDATE batches SET completed_at = completed_at - interval '29 days'")
    retention(stage.world).end_data()
    assert keys(stage) == {parse_file_id(file["id"]), batch}
    stage.world.run("UPDATE batches SET completed_at = completed_at - interval '2 days'")
    retention(stage.world).end_data()
    assert keys(stage) == {parse_file_id(file["id"])}
    stage.forget()
    for each in (ended["output_file_id"], ended["error_file_id"]):
        response = stage.get(f"/v1/files/{each}/content")
        assert response.status_code == 404
        assert response.json["error"]["code"] == "data_key_destroyed"
    response = stage.get(f"/v1/batches/batch_{batch.hex}/results")
    assert response.json["error"]["code"] == "data_ended"
    assert stage.content(file["id"]) == CONTENT.decode()
    stage.tick()
    for each in (ended["output_file_id"], ended["error_file_id"]):
        assert stage.get(f"/v1/files/{each}").status_code == 404


def test_the_index_of_an_encrypted_file_is_encrypted(stage: Stage) -> None:
    content = line(f"id-{MARKER}", kind="plain", input="x")
    stage.upload(content, sealed=True)
    indexes = [key for key in stage.api.object_keys() if key.startswith("indexes/")]
    assert len(indexes) == 1
    assert stage.traces() == []
    stage.upload(content, sealed=False)
    assert stage.traces() == ["files", "indexes"]


def test_a_damaged_index_is_written_again(stage: Stage) -> None:
    batch = stage.create(stage.upload(CONTENT, sealed=True)["id"])
    (key,) = (key for key in stage.api.object_keys() if key.startswith("indexes/"))
    path = stage.api.objects / key
    damaged = path.read_bytes()[:-1] + b"?"
    path.write_bytes(damaged)
    assert stage.split(batch) == 1
    assert stage.world.value("SELECT count(*) FROM requests") == len(KINDS)
    assert path.read_bytes() != damaged
    stage.work(batch)
    stage.finalize(batch)
    assert stage.traces() == []


def test_a_damaged_input_fails_its_batch(stage: Stage) -> None:
    batch = stage.create(stage.upload(CONTENT, sealed=True)["id"])
    (key,) = (key for key in stage.api.object_keys() if key.startswith("sealed/"))
    path = stage.api.objects / key
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    stage.split(batch)
    ended = stage.get(f"/v1/batches/batch_{batch.hex}").json
    assert [problem["code"] for problem in ended["errors"]["data"]] == ["input_corrupt"]


def test_a_refused_part_leaves_its_upload_readable(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.uploads.model.MAX_PART_BYTES", 0)
    body = {"bytes": len(CONTENT), "filename": "in.jsonl", "mime_type": "application/jsonl"}
    body |= {"purpose": "batch", "zero_retention": True}
    upload = stage.api("POST", "/v1/uploads", json=body).json["id"]
    answers = [
        post(stage.api, form(part("data", CONTENT, "x")), path=f"/v1/uploads/{upload}/parts")
        for _ in range(3)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 413]
    stage.forget()
    named = {"part_ids": [answers[0].json["id"]]}
    completed = stage.api("POST", f"/v1/uploads/{upload}/complete", json=named)
    assert completed.status_code == 200, completed.text
    assert stage.content(completed.json["file"]["id"]) == CONTENT.decode()


def test_presigned_transfers_refuse_zero_retention(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"bytes": 10, "filename": "in.jsonl", "mime_type": "application/jsonl"}
    body |= {"purpose": "batch", "zero_retention": True, "transfer": "presigned"}
    file = stage.upload(CONTENT, sealed=True)["id"]
    for response, param in (
        (stage.api("POST", "/v1/uploads", json=body), "transfer"),
        (stage.get(f"/v1/files/{file}/content?presign=60"), "presign"),
    ):
        assert response.status_code == 400
        error = response.json["error"]
        assert (error["code"], error["param"]) == ("zero_retention_not_presigned", param)
        assert "encrypt" in error["message"]
    assert keys(stage) == {parse_file_id(file)}
    stage.api.override(monkeypatch, "read", presigned_downloads=True)
    assert stage.content(file) == CONTENT.decode()
