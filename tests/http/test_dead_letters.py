"""`/v1/dead_letters`: pages, filters, downloads, requeue, discard, and tenant isolation."""

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
from lowtide.objects.joined import JoinedObjects
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
    """The object store of the API."""
    return ObstoreObjects(f"file://{api.objects}")


class Letters:
    """Creates batches with dead letters, and calls their API."""

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
        """Create a batch whose requests at the lines `dead` are dead letters."""
        batch = batch_of_lines(self.world, self.store, source_lines(count), tenant)
        bury(self.world, batch, dead, status_code=status_code)
        return batch

    def page(self, query: str = "") -> dict[str, Any]:
        response = self.api("GET", PATH + query)
        assert response.status_code == 200, response.text
        page: dict[str, Any] = response.json
        return page

    def ids(self, query: str = "") -> list[str]:
        return [letter["id"] for letter in self.page(query)["data"]]

    def post(self, action: str, body: Any, **headers: str) -> Any:
        return self.api("POST", f"{PATH}/{action}", json=body, headers=headers)


@pytest.fixture
def letters(api: Api, world: World, store: ObstoreObjects) -> Letters:
    """The dead letters API, without letters."""
    return Letters(api, world, store)


def _lines(*numbers: int, count: int = 9) -> bytes:
    source = source_lines(count)
    return b"".join(source[number - 1].strip(b" \t\r") + b"\n" for number in numbers)


def test_page_lists_letters_newest_first(letters: Letters) -> None:
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
def test_pages_continue_after_last_id(letters: Letters, limit: int, query: str) -> None:
    first, second = letters.batch(5, (1, 2, 5)), letters.batch(4, (1, 2, 3, 4))
    query = f"?limit={limit}" + query.format(format_batch_id(second))
    expected = [(second, line) for line in (4, 3, 2, 1)]
    if "batch_id" not in query:
        expected += [(first, line) for line in (5, 2, 1)]
    ids: list[str] = []
    has_more, after = True, ""
    while has_more:
        page = letters.page(query + after)
        assert 0 < len(page["data"]) <= limit
        ids += [letter["id"] for letter in page["data"]]
        has_more, after = page["has_more"], f"&after={page['last_id']}"
    assert ids == [format_request_id(*letter) for letter in expected]


def test_filters_select_letters(letters: Letters) -> None:
    failed, timed_out = letters.batch(4, (1, 2)), letters.batch(4, (3,), status_code=None)
    open_ = format_request_id(failed, 1)
    letters.post("discard", {"ids": [format_request_id(failed, 2)]})
    letters.post("requeue", {"filter": {"error_code": "timeout"}})
    for query, expected in (
        ("?state=open", [open_]),
        ("?state=discarded", [format_request_id(failed, 2)]),
        ("?state=requeued", [format_request_id(timed_out, 3)]),
        ("?error_code=timeout", [format_request_id(timed_out, 3)]),
        (f"?batch_id={format_batch_id(failed)}&state=open", [open_]),
        (f"?batch_id={format_batch_id(timed_out)}&error_code=http_500", []),
        (f"?batch_id=batch_{'0' * 32}", []),
    ):
        assert letters.ids(query) == expected, query
    (letter,) = letters.page("?state=requeued")["data"]
    assert letter["ended_by"].startswith("default (api key ")
    assert letter["ended_at"] >= letter["created_at"]
    assert letters.api("GET", f"/v1/batches/{letter['requeued_as']}").status_code == 200


@pytest.mark.parametrize("status_code", [500, None], ids=["answered", "unanswered"])
def test_letter_includes_input_and_output(letters: Letters, status_code: int | None) -> None:
    batch = letters.batch(status_code=status_code)
    response: Any = letters.api("GET", f"{PATH}/{format_request_id(batch, 2)}")
    assert response.status_code == 200, response.text
    # The bytes are included unchanged.
    assert b'"input":' + _lines(2).strip() in response.data
    if status_code is None:
        assert response.json["response"] is None
        assert response.json["error"] == {"code": "timeout", "message": "No answer in 30 s."}
    else:
        assert b'"body":' + ANSWER in response.data
        assert response.json["response"]["status_code"] == 500
        assert response.json["error"] is None


def test_deleted_input_object_blocks_requeue_but_not_discard(letters: Letters) -> None:
    batch = letters.batch()
    letters.store.delete([letters.world.row(batch).input_key])
    response: Any = letters.api("GET", f"{PATH}/{format_request_id(batch, 2)}")
    assert (response.status_code, response.json["input"]) == (200, None)
    for path in ("/content", f"/content?batch_id={format_batch_id(batch)}"):
        response = letters.api("GET", PATH + path)
        assert (response.status_code, response.json["error"]["code"]) == (409, "input_file_gone")
    response = letters.post("requeue", {"filter": {}})
    assert (response.status_code, response.json["error"]["code"]) == (409, "input_file_gone")
    assert format_batch_id(batch) in response.json["error"]["message"]
    assert letters.post("discard", {"filter": {}}).json["changed"] == 3


def test_removed_input_file_returns_409(letters: Letters) -> None:
    batch = letters.batch()
    letters.world.run("UPDATE batches SET status = 'completed', completed_at = now()")
    file = FileId(letters.world.row(batch).input_file_id)
    letters.world.files.remove(DEFAULT_TENANT, file)
    for method, path in (("GET", "/content?which=input"), ("POST", "/requeue")):
        body: dict[str, Any] = {"json": {"filter": {}}} if method == "POST" else {}
        response: Any = letters.api(method, PATH + path, **body)
        assert (response.status_code, response.json["error"]["code"]) == (409, "input_file_gone")
    assert letters.api("GET", f"{PATH}/content?which=output").status_code == 200


def test_summary_counts_letters_by_error(letters: Letters) -> None:
    letters.batch()
    timed_out = letters.batch(4, (1,), status_code=None)
    letters.batch(tenant=letters.world.tenant("other"))
    groups = [
        {"error_code": "http_500", "error_message": None, "letters": 3},
        {"error_code": "timeout", "error_message": "No answer in 30 s.", "letters": 1},
    ]
    expected = {"object": "dead_letter.summary", "total": 4, "capped": False, "groups": groups}
    assert letters.page("/summary") == letters.page("/summary?state=open") == expected
    one = letters.page("/summary?error_code=timeout&error_message=No+answer+in+30+s.")
    assert one == expected | {"total": 1, "groups": groups[1:]}
    assert letters.page(f"/summary?batch_id={format_batch_id(timed_out)}") == one
    assert letters.page("/summary?state=discarded") == expected | {"total": 0, "groups": []}


def test_message_selects_letters_to_list_and_discard(letters: Letters) -> None:
    letters.batch()
    timed_out = letters.batch(4, (1,), status_code=None)
    message = {"error_message": "No answer in 30 s."}
    assert letters.ids("?error_message=No+answer+in+30+s.") == [format_request_id(timed_out, 1)]
    assert letters.ids("?error_message=No") == []
    assert letters.post("discard", {"filter": message}).json["changed"] == 1
    assert letters.page("/summary?state=open")["total"] == 3


def test_input_download_is_byte_identical(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.dead_letters.service._BLOCK_BYTES", 100)
    monkeypatch.setattr("lowtide.dead_letters.store._PAGE_OF_PLACES", 2)
    first, _ = letters.batch(), letters.batch(4, (1,))
    response = letters.api("GET", f"{PATH}/content?batch_id={format_batch_id(first)}")
    assert response.data == _lines(2, 3, 9)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert letters.api("GET", f"{PATH}/content").data == _lines(2, 3, 9, 1)
    assert letters.api("GET", f"{PATH}/content?error_code=none").data == b""


def test_output_download_equals_error_file(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowtide.dead_letters.service._BLOCK_BYTES", 100)
    from lowtide.pipeline.finalize import Finalizer

    batch = letters.batch()
    Finalizer(
        letters.world.finals,
        JoinedObjects(letters.store),
        letters.api.app().publisher,
        new_id=new_id,
    ).finalize(batch)
    error_file = letters.world.row(batch).error_file_id
    errors = letters.api("GET", f"/v1/files/file-{error_file.hex}/content")
    response = letters.api("GET", f"{PATH}/content?which=output")
    assert response.data == errors.data
    assert custom_ids(response.data) == ["2", "3", "9"]


def test_downloads_and_changes_are_audited(letters: Letters, world: World) -> None:
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


def test_requeue_creates_each_batch_once(letters: Letters) -> None:
    batch = letters.batch()
    ids = letters.ids()
    body = {"ids": ids[:2], "completion_window": "2h"}
    preview = letters.post("requeue", body | {"dry_run": True}).json
    source = {"source_batch_id": format_batch_id(batch), "letters": 2}
    assert preview == {
        "object": "dead_letter.requeue", "dry_run": True, "changed": 2, "unchanged": 0,
        "remaining": 0, "batches": [source | {"batch_id": None}],
    }  # fmt: skip
    result = letters.post("requeue", body).json
    (new,) = result["batches"]
    assert result == preview | {
        "dry_run": False,
        "batches": [source | {"batch_id": new["batch_id"]}],
    }
    created: Any = letters.api("GET", f"/v1/batches/{new['batch_id']}").json
    assert (created["completion_window"], created["status"]) == ("2h", "validating")
    content = letters.api("GET", f"/v1/files/{created['input_file_id']}/content")
    assert content.data == _lines(3, 9)
    repeated = letters.post("requeue", body).json
    assert repeated == result | {"changed": 0, "unchanged": 2}
    key = {"Idempotency-Key": "once"}
    rest = letters.post("requeue", {"filter": {}}, **key).json
    assert rest["changed"] == 1
    assert letters.post("requeue", {"filter": {}}, **key).json["batches"] == rest["batches"]


def test_discard_changes_each_letter_once(letters: Letters) -> None:
    letters.batch()
    ids = letters.ids()
    preview = {
        "object": "dead_letter.discard", "dry_run": True, "changed": 3, "unchanged": 0, "remaining": 0,
    }  # fmt: skip
    assert letters.post("discard", {"filter": {}, "dry_run": True}).json == preview
    assert letters.post("discard", {"ids": ids}).json == preview | {"dry_run": False}
    repeated = preview | {"dry_run": False, "changed": 0, "unchanged": 3}
    assert letters.post("discard", {"ids": ids}).json == repeated
    assert letters.post("requeue", {"ids": ids}).json["unchanged"] == 3
    assert letters.world.value("SELECT count(*) FROM batches") == 1


BAD_BODIES = [
    pytest.param({}, 400, "ids", id="nothing named"),
    pytest.param({"ids": None, "filter": None}, 400, "ids", id="nulls"),
    pytest.param({"ids": [ID], "filter": {}}, 400, "filter", id="both"),
    pytest.param({"ids": []}, 400, "ids", id="no ids"),
    pytest.param({"ids": ["x"]}, 400, "ids", id="no id"),
    pytest.param({"ids": [ID]}, 404, "ids", id="unknown id"),
    pytest.param({"ids": ["batch_req_" + "f" * 40]}, 404, "ids", id="line out of range"),
    pytest.param({"ids": [ID] * 50_001}, 400, "ids", id="too many ids"),
    pytest.param({"ids": ID}, 400, "ids", id="a string"),
    pytest.param({"filter": {"batch_id": "x"}}, 400, "filter", id="no batch id"),
    pytest.param({"filter": {"eror_code": "x"}}, 400, "filter", id="misspelt field"),
    pytest.param({"filter": {"error_code": "\x00"}}, 400, "filter", id="NUL"),
    pytest.param({"filter": {"error_code": "x" * 257}}, 400, "filter", id="a long code"),
    pytest.param({"filter": []}, 400, "filter", id="filter a list"),
    pytest.param({"filter": {}, "state": "open"}, 400, None, id="an unknown field"),
    pytest.param({"filter": {}, "dry_run": 1}, 400, "dry_run", id="dry_run a number"),
]


@pytest.mark.parametrize("action", ["requeue", "discard"])
@pytest.mark.parametrize(("body", "status", "param"), BAD_BODIES)
def test_invalid_body_is_rejected(
    letters: Letters, action: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    letters.batch()
    response = letters.post(action, body)
    assert (response.status_code, response.json["error"]["param"]) == (status, param), response.text
    assert letters.page("?state=open")["has_more"] is False
    assert len(letters.ids("?state=open")) == 3


@pytest.mark.parametrize("window", ["8d", "1s", "", 24, None])
def test_requeue_validates_completion_window(letters: Letters, window: Any) -> None:
    letters.batch()
    response = letters.post("requeue", {"filter": {}, "completion_window": window})
    if window is None:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json["error"]["param"]) == (400, "completion_window")


@pytest.fixture
def _no_dedicated(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strict admission without dedicated replicas."""
    api.override(monkeypatch, "create_batch", dedicated_replicas=0, admission=Admission.STRICT)


@pytest.mark.usefixtures("_no_dedicated")
def test_requeue_without_capacity_is_rejected(letters: Letters) -> None:
    letters.batch()
    for pool, param, code, fix in (
        ("dedicated", "pool", "pool_without_replicas", "requeue to spot"),
        ("spot", "completion_window", "deadline_not_feasible", "LOWTIDE_ADMISSION=open"),
    ):
        rejected = letters.post("requeue", {"filter": {}, "pool": pool})
        error = rejected.json["error"]
        assert (rejected.status_code, error["param"], error["code"]) == (409, param, code)
        assert fix in error["message"]
    assert len(letters.ids("?state=open")) == 3


def test_requeue_is_limited_to_max_batch_size(letters: Letters) -> None:
    letters.batch(MAX_LINES, tuple(range(1, MAX_LINES + 1)))
    letters.batch(2, (1, 2))
    first = letters.post("requeue", {"filter": {}}).json
    assert (first["changed"], first["remaining"]) == (MAX_LINES, 2)
    assert letters.post("requeue", {"filter": {}}).json["changed"] == 2


@pytest.mark.parametrize("action", ["requeue", "discard"])
def test_body_must_be_small_json(letters: Letters, action: str) -> None:
    path = f"{PATH}/{action}"
    large = json.dumps({"filter": {}}).encode().ljust((4 << 20) + 1)
    rejected = letters.api("POST", path, data=large, content_type="application/json")
    assert rejected.status_code == 413
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
        ("?error_message=%00", 400, "error_message"),
        (f"/summary?error_message={'x' * 201}", 400, "error_message"),
        ("/summary?state=x", 400, "state"),
        ("/content?which=both", 400, "which"),
        ("/content?state=x", 400, "state"),
        ("/x", 404, None),
        ("/requeue", 405, None),
        ("/batch_req_x", 404, "letter_id"),
        (f"/{ID}", 404, "letter_id"),
        ("/batch_req_" + "0" * 40, 404, "letter_id"),
    ],
)
def test_invalid_arguments_are_rejected(
    letters: Letters, path: str, status: int, param: str | None
) -> None:
    letters.batch(1, (1,))
    response: Any = letters.api("GET", PATH + path)
    assert (response.status_code, response.json["error"]["param"]) == (status, param), response.text


def test_foreign_letters_are_invisible(letters: Letters) -> None:
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
    for action in ("requeue", "discard"):
        assert letters.post(action, {"ids": [id_]}).status_code == 404
        assert letters.post(action, {"filter": {}}).json["changed"] == 0
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
def test_random_json_body_never_returns_5xx(api: Api, body: Any, action: str) -> None:
    data = json.dumps(body)
    response = api("POST", f"{PATH}/{action}", data=data, content_type="application/json")
    assert response.status_code in {200, 400}, response.text
