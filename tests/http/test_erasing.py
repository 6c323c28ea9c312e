"""Deleting a batch's files erases what was in them: everywhere, and at once for readers."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

import pytest
from msgspec.structs import replace

from lowtide.batches import erasure
from lowtide.batches.browsing import BatchBrowser
from lowtide.batches.detail_store import BatchDetailStore
from lowtide.batches.erasure import Eraser
from lowtide.core.errors import Unavailable
from lowtide.core.ids import new_id, parse_batch_id
from lowtide.core.pools import Pool
from lowtide.core.scopes import Role
from lowtide.events.publisher import Publisher
from lowtide.files.lines import Limits
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.finalize import Finalizer
from lowtide.pipeline.split import Splitter
from lowtide.queue.claims import Returned
from lowtide.search.indexing import SearchIndexer
from lowtide.tenants.sign_in import Principal
from tests.fleets.single import SINGLE
from tests.http.forms import line, upload
from tests.worker.workers import Sink
from tests.worlds import done

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from tests.http.conftest import Api
    from tests.worlds import World

PROMPT, NAME, ANSWER, ERROR = "marker-prompt", "marker-name", "marker-answer", "marker-error"
ROLES: Final = {
    "output_file_id": {ANSWER},
    "error_file_id": {ERROR},
    "input_file_id": {PROMPT, NAME},
}


class Story:
    """A closed batch with markers in what it read and wrote, behind the API's functions.

    Request 1 succeeded after a retry, 2 has an error of HTTP, 3 an error message, 4 is a dead letter.
    """

    def __init__(self, api: Api, world: World) -> None:
        self.api, self.world = api, world
        self.objects = JoinedObjects(ObstoreObjects(f"file://{api.objects}"))
        lines = [line(f"{NAME}-{number}", text=PROMPT) for number in range(1, 5)]
        file = upload(api, b"".join(lines))
        created: Any = api("POST", "/v1/batches", json={"input_file_id": file["id"]}).json
        self.id: str = created["id"]
        batch = parse_batch_id(self.id)
        assert batch is not None
        self.batch: BatchId = batch
        publisher = Publisher(Sink(), world.outbox)
        Splitter(world.splits, self.objects, Limits(), SINGLE, publisher).split(batch)
        self._run()
        SearchIndexer(world.worker).index(limit=100)
        Finalizer(world.finals, self.objects, publisher, new_id=new_id).finalize(batch)

    def _run(self) -> None:
        queue = self.world.queue
        lease = queue.open_lease(Pool.SPOT, "w")
        claims = sorted(queue.claim(lease, Pool.SPOT, 4), key=lambda claim: claim.line)
        reason = f"HTTP 500: {ERROR} and {ANSWER}"
        queue.settle(lease, [], [Returned(self.batch, 1, reason, 0.0, failed=True)])
        (again,) = queue.claim(lease, Pool.SPOT, 1)
        failed = [done(claim, succeeded=False, body=ERROR.join('""').encode()) for claim in claims]
        message: Any = {"status_code": None, "body": None, "error_code": "timeout"}
        results = [
            done(again, body=json.dumps({"text": ANSWER}).encode()),
            failed[1],
            replace(failed[2], **message, error_message=ERROR),
            replace(failed[3], **message, error_message=ERROR, dead_letter=True),
        ]
        queue.settle(lease, results, [])

    def batch_object(self) -> Any:
        return self.api("GET", f"/v1/batches/{self.id}").json

    def delete(self, role: str) -> None:
        file = self.batch_object()[role]
        assert self.api("DELETE", f"/v1/files/{file}").status_code == 200

    def tick(self) -> None:
        """Do a tick's part of a deletion."""
        keys = self.world.ticks.orphans(100).keys
        self.objects.delete(keys)
        self.world.ticks.forget_orphans(keys)
        Eraser(self.world.worker).erase()

    def found(self, caplog: pytest.LogCaptureFixture) -> set[str]:
        """Return the markers that a table, an object or a log line has."""
        texts = [row for rows in self.world.contents().values() for row in rows]
        texts += [
            path.read_bytes().decode("utf-8", "replace")
            for path in self.api.objects.rglob("*")
            if path.is_file()
        ]
        texts += [str(record.__dict__) for record in caplog.records]
        everything = "\n".join(texts)
        return {marker for marker in (PROMPT, NAME, ANSWER, ERROR) if marker in everything}


@pytest.fixture
def story(api: Api, world: World, caplog: pytest.LogCaptureFixture) -> Story:
    caplog.set_level(logging.DEBUG, logger="lowtide")
    return Story(api, world)


@pytest.mark.parametrize("bodies", ["in the database", "gone"])
def test_markers_are_found_nowhere_after_their_files_are_deleted(
    story: Story, caplog: pytest.LogCaptureFixture, bodies: str
) -> None:
    if bodies == "gone":
        story.world.run("UPDATE erasures SET due_at = now()")
        story.tick()
    remaining = {PROMPT, NAME, ANSWER, ERROR}
    assert story.found(caplog) == remaining
    for role, markers in ROLES.items():
        story.delete(role)
        story.tick()
        remaining -= markers
        assert story.found(caplog) >= remaining - {NAME}
        assert not story.found(caplog) & (markers - {NAME})
    story.tick()
    assert story.found(caplog) == set()
    assert story.api.object_keys() == set()
    assert story.world.rows("SELECT 1 FROM erasures WHERE part <> 'bodies'") == []


def test_expired_files_are_erased_as_deleted_ones(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    story.world.run("UPDATE files SET expires_at = now()")
    story.tick()
    story.tick()
    assert story.found(caplog) == set()
    assert story.api.object_keys() == set()


class _KilledError(BaseException):
    """Death of the process."""


@pytest.mark.parametrize("death", ["objects", "orphans", "set"])
def test_erasure_that_was_killed_is_finished_by_ticks(
    story: Story, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    monkeypatch.setattr(erasure, "_FIRST_SET", 1)

    def dies(*_: Any, **__: Any) -> Any:
        raise _KilledError

    targets: dict[str, tuple[Any, str]] = {
        "objects": (ObstoreObjects, "delete"),
        "orphans": (story.world.files.__class__, "removed"),
        "set": (Eraser, "_erase"),
    }
    for role in ROLES:
        with monkeypatch.context() as patch:
            patch.setattr(*targets[death], dies)
            try:
                story.delete(role)
                story.tick()
            except _KilledError:
                pass
    assert story.found(caplog) != set()
    story.tick()
    story.tick()
    assert story.found(caplog) == set()
    assert story.api.object_keys() == set()


def test_store_that_fails_leaves_the_deletion_to_the_scheduler(
    story: Story, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise Unavailable("The object store is away.")

    file = story.batch_object()["output_file_id"]
    with monkeypatch.context() as patch:
        patch.setattr(ObstoreObjects, "delete", fails)
        assert story.api("DELETE", f"/v1/files/{file}").status_code == 503
    assert ANSWER in story.found(caplog)
    assert story.api("GET", f"/v1/batches/{story.id}/results").status_code == 404
    story.tick()
    assert ANSWER not in story.found(caplog)


@pytest.mark.parametrize("role", ["output", "error"])
@pytest.mark.parametrize("bodies", ["in the database", "gone"])
def test_readers_say_at_once_that_answers_are_deleted(story: Story, role: str, bodies: str) -> None:
    if bodies == "gone":
        story.world.run("UPDATE erasures SET due_at = now()")
        story.tick()
    path = f"/v1/batches/{story.id}/results"
    assert len(story.api("GET", path).data.splitlines()) == 4
    assert not _details(story, 1).is_erased
    story.delete(f"{role}_file_id")
    response: Any = story.api("GET", path)
    assert (response.status_code, response.json["error"]["code"]) == (404, "answers_deleted")
    assert f"The {role} file" in response.json["error"]["message"]
    assert [_details(story, number).is_erased for number in (1, 2, 3)] == [
        role == "output",
        role == "error",
        False,
    ]
    assert _details(story, 2).record.body is None or role == "output"
    letters: Any = story.api("GET", "/v1/dead_letters").json
    letter: Any = story.api("GET", f"/v1/dead_letters/{letters['data'][0]['id']}").json
    outputs = story.api("GET", "/v1/dead_letters/content?which=output")
    if role == "error":
        assert letter["error"]["message"] == "The response was deleted with the batch's error file."
        assert outputs.status_code == 404
    else:
        assert letter["error"]["message"] == ERROR
        assert ERROR in outputs.text


def test_answers_of_batch_that_an_earlier_version_closed_are_deleted_too(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    story.world.run("DELETE FROM segments")
    path = f"/v1/batches/{story.id}/results"
    assert ANSWER in story.api("GET", path).text
    story.delete("output_file_id")
    assert story.api("GET", path).status_code == 404
    assert story.api("GET", f"{path}?after=9.9").status_code == 404
    assert _details(story, 1).is_erased
    story.tick()
    assert ANSWER not in story.found(caplog)


def _details(story: Story, number: int) -> Any:
    world, objects = story.world, story.objects
    services = story.api.app().services
    operator = Principal("me", Role.OPERATOR)
    browser = BatchBrowser(
        BatchDetailStore(world.database.engine("operator")), objects, services.forecaster
    )
    return browser.line(operator, story.batch, number)


def test_requests_without_custom_id_are_listed_and_not_found(story: Story) -> None:
    search = f"/v1/search?q={NAME}-2"
    found: Any = story.api("GET", search).json
    assert [match["custom_id"] for match in found["data"]] == [f"{NAME}-2"]
    story.delete("input_file_id")
    story.tick()
    found = story.api("GET", search).json
    assert found["data"] == []
    page: Any = story.api("GET", f"/v1/batches/{story.id}/requests").json
    assert [request["custom_id"] for request in page["data"]] == [None] * 4
    letters: Any = story.api("GET", "/v1/dead_letters").json
    assert letters["data"][0]["custom_id"] is None
    assert NAME in story.api("GET", f"/v1/batches/{story.id}/results").text


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_results_are_the_same_before_and_after_the_bodies_are_gone(
    api: Api, world: World, limit: int
) -> None:
    story = Story(api, world)
    # The bytes that the database has, as they are without an index.
    world.run("UPDATE segments SET batch_id = gen_random_uuid()")
    before = _pages(story, limit)
    world.run("UPDATE segments SET batch_id = :batch", batch=story.batch)
    world.run("UPDATE erasures SET due_at = now()")
    story.tick()
    assert world.rows("SELECT 1 FROM results WHERE body IS NOT NULL") == []
    assert _pages(story, limit) == before
    assert sum(content.count(b"\n") for content, *_ in before) == 4


def _pages(story: Story, limit: int) -> list[tuple[bytes, str, str]]:
    pages, after = [], "0.0"
    for _ in range(6):
        path = f"/v1/batches/{story.id}/results?limit={limit}&after={after}"
        response = story.api("GET", path)
        assert response.status_code == 200
        after = response.headers["x-lowtide-cursor"]
        pages.append((response.data, after, response.headers["x-lowtide-complete"]))
    return pages
