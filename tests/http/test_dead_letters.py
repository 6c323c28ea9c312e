"""`/v1/dead_letters`: what it shows, what it takes, and whom it answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from lowtide.core.ids import (
    DEFAULT_TENANT,
    BatchId,
    FileId,
    format_batch_id,
    format_request_id,
    new_id,
)
from lowtide.objects.store import ObstoreObjects
from lowtide.settings import Admission
from tests.dead_letters.letters import ANSWER, batch_of_lines, bury, custom_ids, source_lines
from tests.http.conftest import MAX_LINES

if TYPE_CHECKING:
    from lowtide.core.ids import TenantId
    from tests.http.conftest import Api
    from tests.worlds import World

PATH = "/v1/dead_letters"
ID = "batch_req_" + "0" * 39 + "1"


@pytest.fixture
def store(api: Api) -> ObstoreObjects:
    """The store behind the API."""
    return ObstoreObjects(f"file://{api.objects}")


class Letters:
    """Batches with dead letters, behind the API."""

    def __init__(self, api: Api, world: World, store: ObstoreObjects) -> None:
        self.api = api
        self.world = world
        self.store = store

    def batch(
        self,
        count: int = 9,
        dead: tuple[int, ...] = (2, 3, 9),
        *,
        status_code: int | None = 500,
        tenant: TenantId = DEFAULT_TENANT,
    ) -> BatchId:
        """Create a batch whose lines `dead` died."""
        made = batch_of_lines(self.world, self.store, source_lines(count), tenant)
        bury(self.world, made, dead, status_code=status_code)
        return made

    def page(self, query: str = "") -> dict[str, Any]:
        answer = self.api("GET", PATH + query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json
        return found

    def ids(self, query: str = "") -> list[str]:
        return [letter["id"] for letter in self.page(query)["data"]]

    def post(self, what: str, body: Any, **headers: str) -> Any:
        return self.api("POST", f"{PATH}/{what}", json=body, headers=headers)


@pytest.fixture
def letters(api: Api, world: World, store: ObstoreObjects) -> Letters:
    """No letters yet."""
    return Letters(api, world, store)


def _lines(*numbers: int, count: int = 9) -> bytes:
    whole = source_lines(count)
    return b"".join(whole[number - 1].strip(b" \t\r") + b"\n" for number in numbers)


def test_a_page(letters: Letters) -> None:
    batch = letters.batch()
    page = letters.page()
    ids = [format_request_id(batch, line) for line in (9, 3, 2)]
    assert [letter["id"] for letter in page["data"]] == ids
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list", ids[0], ids[2], False,
    )  # fmt: skip
    letter = page["data"][1]
    assert isinstance(letter.pop("created_at"), int)
    assert letter == {
        "id": ids[1], "object": "dead_letter", "batch_id": format_batch_id(batch), "line": 3,
        "custom_id": "3", "state": "open", "attempts": 1, "status_code": 500,
        "error_code": "http_500", "error_message": None, "ended_at": None, "ended_by": None,
        "requeued_as": None,
    }  # fmt: skip


@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("query", ["", "&state=open", "&error_code=http_500", "&batch_id={}"])
def test_pages_go_on_where_the_last_one_ended(letters: Letters, limit: int, query: str) -> None:
    first, second = letters.batch(5, (1, 2, 5)), letters.batch(4, (1, 2, 3, 4))
    query = f"?limit={limit}" + query.format(format_batch_id(second))
    lines = [(second, line) for line in (4, 3, 2, 1)]
    if "batch_id" not in query:
        lines += [(first, line) for line in (5, 2, 1)]
    seen: list[str] = []
    more, after = True, ""
    while more:
        page = letters.page(query + after)
        assert 0 < len(page["data"]) <= limit
        seen += [letter["id"] for letter in page["data"]]
        more, after = page["has_more"], f"&after={page['last_id']}"
    assert seen == [format_request_id(*letter) for letter in lines]


def test_filters(letters: Letters) -> None:
    failed, silent = letters.batch(4, (1, 2)), letters.batch(4, (3,), status_code=None)
    open_ = format_request_id(failed, 1)
    letters.post("discard", {"ids": [format_request_id(failed, 2)]})
    letters.post("requeue", {"filter": {"error_code": "timeout"}})
    for query, found in (
        ("?state=open", [open_]),
        ("?state=discarded", [format_request_id(failed, 2)]),
        ("?state=requeued", [format_request_id(silent, 3)]),
        ("?error_code=timeout", [format_request_id(silent, 3)]),
        (f"?batch_id={format_batch_id(failed)}&state=open", [open_]),
        (f"?batch_id={format_batch_id(silent)}&error_code=http_500", []),
        (f"?batch_id=batch_{'0' * 32}", []),
    ):
        assert letters.ids(query) == found, query
    (letter,) = letters.page("?state=requeued")["data"]
    assert letter["ended_by"].startswith("key default (")
    assert letter["ended_at"] >= letter["created_at"]
    assert letters.api("GET", f"/v1/batches/{letter['requeued_as']}").status_code == 200


@pytest.mark.parametrize("status_code", [500, None], ids=["answered", "unanswered"])
def test_a_letter_with_what_went_in_and_out(letters: Letters, status_code: int | None) -> None:
    batch = letters.batch(status_code=status_code)
    answer: Any = letters.api("GET", f"{PATH}/{format_request_id(batch, 2)}")
    assert answer.status_code == 200, answer.text
    # The bytes are in there as they are.
    assert b'"input":' + _lines(2).strip() in answer.data
    if status_code is None:
        assert answer.json["response"] is None
        assert answer.json["error"] == {"code": "timeout", "message": "No answer in 30 s."}
    else:
        assert b'"body":' + ANSWER in answer.data
        assert answer.json["response"]["status_code"] == 500
        assert answer.json["error"] is None


def test_a_letter_whose_input_is_gone(letters: Letters) -> None:
    batch = letters.batch()
    letters.store.delete([letters.world.row(batch).input_key])
    answer: Any = letters.api("GET", f"{PATH}/{format_request_id(batch, 2)}")
    assert (answer.status_code, answer.json["input"]) == (200, None)
    for path in ("/content", f"/content?batch_id={format_batch_id(batch)}"):
        answer = letters.api("GET", PATH + path)
        assert (answer.status_code, answer.json["error"]["code"]) == (409, "input_file_gone")
    answer = letters.post("requeue", {"filter": {}})
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "input_file_gone")
    assert format_batch_id(batch) in answer.json["error"]["message"]
    assert letters.post("discard", {"filter": {}}).json["changed"] == 3


def test_an_expired_input_is_told_before_anything_is_sent(letters: Letters) -> None:
    batch = letters.batch()
    letters.world.run("UPDATE batches SET status = 'completed', completed_at = now()")
    file = FileId(letters.world.row(batch).input_file_id)
    letters.world.files.remove(DEFAULT_TENANT, file)
    for method, path in (("GET", "/content?which=input"), ("POST", "/requeue")):
        body: dict[str, Any] = {"json": {"filter": {}}} if method == "POST" else {}
        answer: Any = letters.api(method, PATH + path, **body)
        assert (answer.status_code, answer.json["error"]["code"]) == (409, "input_file_gone")
    assert letters.api("GET", f"{PATH}/content?which=output").status_code == 200


def test_inputs_are_downloaded_byte_for_byte(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.dead_letters.service._BLOCK_BYTES", 100)
    monkeypatch.setattr("lowtide.dead_letters.store._PAGE_OF_PLACES", 2)
    first, _ = letters.batch(), letters.batch(4, (1,))
    answer = letters.api("GET", f"{PATH}/content?batch_id={format_batch_id(first)}")
    assert answer.data == _lines(2, 3, 9)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert letters.api("GET", f"{PATH}/content").data == _lines(2, 3, 9, 1)
    assert letters.api("GET", f"{PATH}/content?error_code=none").data == b""


def test_outputs_are_those_of_the_error_file(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.dead_letters.service._BLOCK_BYTES", 100)
    from lowtide.pipeline.finalize import Finalizer

    batch = letters.batch()
    Finalizer(
        letters.world.finals, letters.store, letters.api.app().publisher, new_id=new_id
    ).finalize(batch)
    error_file = letters.world.row(batch).error_file_id
    errors = letters.api("GET", f"/v1/files/file-{error_file.hex}/content")
    answer = letters.api("GET", f"{PATH}/content?which=output")
    assert answer.data == errors.data
    assert custom_ids(answer.data) == ["2", "3", "9"]


def test_downloads_and_changes_are_in_the_audit_log(letters: Letters, world: World) -> None:
    batch = format_batch_id(letters.batch())
    assert letters.api("HEAD", f"{PATH}/content").status_code == 200
    letters.api("GET", f"{PATH}/content?which=output&batch_id={batch}&state=open")
    letters.post("discard", {"ids": letters.ids()[:2]})
    letters.post("discard", {"ids": letters.ids()[:2]})
    with world.database.engine("operator").begin() as connection:
        rows = connection.execute(text("SELECT action, subject FROM audit_log ORDER BY id"))
        assert [tuple(row) for row in rows] == [
            ("dead_letters.download", f"output: batch_id={batch} state=open"),
            ("dead_letters.discard", f"{batch}: 2 requests"),
        ]


def test_requeueing(letters: Letters) -> None:
    batch = letters.batch()
    ids = letters.ids()
    body = {"ids": ids[:2], "completion_window": "2h"}
    would = letters.post("requeue", body | {"dry_run": True}).json
    source = {"source_batch_id": format_batch_id(batch), "letters": 2}
    assert would == {
        "object": "dead_letter.requeue", "dry_run": True, "changed": 2, "unchanged": 0,
        "remaining": 0, "batches": [source | {"batch_id": None}],
    }  # fmt: skip
    done = letters.post("requeue", body).json
    (new,) = done["batches"]
    assert done == would | {"dry_run": False, "batches": [source | {"batch_id": new["batch_id"]}]}
    made: Any = letters.api("GET", f"/v1/batches/{new['batch_id']}").json
    assert (made["completion_window"], made["status"]) == ("2h", "validating")
    content = letters.api("GET", f"/v1/files/{made['input_file_id']}/content")
    assert content.data == _lines(3, 9)
    again = letters.post("requeue", body).json
    assert again == done | {"changed": 0, "unchanged": 2}
    key = {"Idempotency-Key": "once"}
    rest = letters.post("requeue", {"filter": {}}, **key).json
    assert rest["changed"] == 1
    assert letters.post("requeue", {"filter": {}}, **key).json["batches"] == rest["batches"]


def test_discarding(letters: Letters) -> None:
    letters.batch()
    ids = letters.ids()
    would = {
        "object": "dead_letter.discard", "dry_run": True, "changed": 3, "unchanged": 0, "remaining": 0,
    }  # fmt: skip
    assert letters.post("discard", {"filter": {}, "dry_run": True}).json == would
    assert letters.post("discard", {"ids": ids}).json == would | {"dry_run": False}
    again = would | {"dry_run": False, "changed": 0, "unchanged": 3}
    assert letters.post("discard", {"ids": ids}).json == again
    assert letters.post("requeue", {"ids": ids}).json["unchanged"] == 3
    assert letters.world.value("SELECT count(*) FROM batches") == 1


BAD_BODIES = [
    pytest.param({}, 400, "ids", id="nothing named"),
    pytest.param({"ids": None, "filter": None}, 400, "ids", id="nulls"),
    pytest.param({"ids": [ID], "filter": {}}, 400, "filter", id="both"),
    pytest.param({"ids": []}, 400, "ids", id="no ids"),
    pytest.param({"ids": ["x"]}, 400, "ids", id="no id"),
    pytest.param({"ids": [ID]}, 404, "ids", id="unknown id"),
    pytest.param({"ids": ["batch_req_" + "f" * 40]}, 404, "ids", id="a line beyond"),
    pytest.param({"ids": [ID] * 50_001}, 400, "ids", id="too many ids"),
    pytest.param({"ids": ID}, 400, "ids", id="a string"),
    pytest.param({"filter": {"batch_id": "x"}}, 400, "filter", id="no batch id"),
    pytest.param({"filter": {"eror_code": "x"}}, 400, "filter", id="a typing error"),
    pytest.param({"filter": {"error_code": "\x00"}}, 400, "filter", id="NUL"),
    pytest.param({"filter": {"error_code": "x" * 257}}, 400, "filter", id="a long code"),
    pytest.param({"filter": []}, 400, "filter", id="filter a list"),
    pytest.param({"filter": {}, "state": "open"}, 400, None, id="an unknown field"),
    pytest.param({"filter": {}, "dry_run": 1}, 400, "dry_run", id="dry_run a number"),
]


@pytest.mark.parametrize("what", ["requeue", "discard"])
@pytest.mark.parametrize(("body", "status", "param"), BAD_BODIES)
def test_bad_bodies(
    letters: Letters, what: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    letters.batch()
    answer = letters.post(what, body)
    assert (answer.status_code, answer.json["error"]["param"]) == (status, param), answer.text
    assert letters.page("?state=open")["has_more"] is False
    assert len(letters.ids("?state=open")) == 3


@pytest.mark.parametrize("window", ["8d", "1s", "", 24, None])
def test_windows(letters: Letters, window: Any) -> None:
    letters.batch()
    answer = letters.post("requeue", {"filter": {}, "completion_window": window})
    if window is None:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json["error"]["param"]) == (400, "completion_window")


@pytest.fixture
def _no_dedicated(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without dedicated workers, which refuses what it cannot promise."""
    api.change(monkeypatch, "create_batch", dedicated_replicas=0, admission=Admission.STRICT)


@pytest.mark.usefixtures("_no_dedicated")
def test_what_would_wait_for_nobody_is_refused(letters: Letters) -> None:
    letters.batch()
    for pool, param, code, fix in (
        ("dedicated", "pool", "pool_without_replicas", "requeue to spot"),
        ("spot", "completion_window", "deadline_not_feasible", "LOWTIDE_ADMISSION=open"),
    ):
        refused = letters.post("requeue", {"filter": {}, "pool": pool})
        error = refused.json["error"]
        assert (refused.status_code, error["param"], error["code"]) == (409, param, code)
        assert fix in error["message"]
    assert len(letters.ids("?state=open")) == 3


def test_a_call_takes_no_more_than_a_batch_may_have(letters: Letters) -> None:
    letters.batch(MAX_LINES, tuple(range(1, MAX_LINES + 1)))
    letters.batch(2, (1, 2))
    first = letters.post("requeue", {"filter": {}}).json
    assert (first["changed"], first["remaining"]) == (MAX_LINES, 2)
    assert letters.post("requeue", {"filter": {}}).json["changed"] == 2


@pytest.mark.parametrize("what", ["requeue", "discard"])
def test_bodies_are_bounded_and_json(letters: Letters, what: str) -> None:
    path = f"{PATH}/{what}"
    large = json.dumps({"filter": {}}).encode().ljust((4 << 20) + 1)
    refused = letters.api("POST", path, data=large, content_type="application/json")
    assert refused.status_code == 413
    plain = letters.api("POST", path, data=b"{}", content_type="text/plain")
    assert plain.status_code == 415


@pytest.mark.parametrize(
    ("path", "status", "param"),
    [
        ("?after=x", 404, "after"),
        (f"?after={ID}", 404, "after"),
        ("?limit=1001", 400, "limit"),
        ("?state=Open", 400, "state"),
        ("?batch_id=x", 400, "batch_id"),
        ("?error_code=%00", 400, "error_code"),
        (f"?error_code={'x' * 257}", 400, "error_code"),
        ("/content?which=both", 400, "which"),
        ("/content?state=x", 400, "state"),
        ("/x", 404, None),
        ("/requeue", 405, None),
        ("/batch_req_x", 404, "letter_id"),
        (f"/{ID}", 404, "letter_id"),
        ("/batch_req_" + "0" * 40, 404, "letter_id"),
    ],
)
def test_bad_arguments(letters: Letters, path: str, status: int, param: str | None) -> None:
    letters.batch(1, (1,))
    answer: Any = letters.api("GET", PATH + path)
    assert (answer.status_code, answer.json["error"]["param"]) == (status, param), answer.text


def test_another_tenants_letters_are_not_there(letters: Letters) -> None:
    foreign = letters.batch(tenant=letters.world.tenant("other"))
    id_ = format_request_id(foreign, 2)
    assert letters.ids() == []
    assert letters.ids(f"?batch_id={format_batch_id(foreign)}") == []
    assert letters.api("GET", f"{PATH}/{id_}").status_code == 404
    assert letters.api("GET", f"{PATH}?after={id_}").status_code == 404
    for which in ("input", "output"):
        content = letters.api(
            "GET", f"{PATH}/content?which={which}&batch_id={format_batch_id(foreign)}"
        )
        assert (content.status_code, content.data) == (200, b"")
    for what in ("requeue", "discard"):
        assert letters.post(what, {"ids": [id_]}).status_code == 404
        assert letters.post(what, {"filter": {}}).json["changed"] == 0
    assert letters.world.value("SELECT count(*) FROM dead_letters WHERE state = 'open'") == 3


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_FIELDS = st.sampled_from(["ids", "filter", "dry_run", "completion_window", "x"])


@given(st.dictionaries(_FIELDS, _JSON, max_size=5) | _JSON, st.sampled_from(["requeue", "discard"]))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_no_body_fails_unanswered(api: Api, body: Any, what: str) -> None:
    data = json.dumps(body)
    answer = api("POST", f"{PATH}/{what}", data=data, content_type="application/json")
    assert answer.status_code in {200, 400}, answer.text
