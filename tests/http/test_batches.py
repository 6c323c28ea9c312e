"""`/v1/batches`: bodies of every kind, idempotency, pages, cancelling."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowtide.core.ids import parse_batch_id
from lowtide.core.pools import Pool
from lowtide.events.model import EventType
from tests.http.forms import CONTENT_TYPE, form, line, part, uploaded
from tests.worlds import done

if TYPE_CHECKING:
    from tests.http.conftest import Api
    from tests.worlds import World

ID = "0" * 32


def _create(api: Api, body: Any, **headers: str) -> Any:
    return api("POST", "/v1/batches", json=body, headers=headers)


@pytest.fixture
def file_id(api: Api) -> str:
    """The id of an uploaded file."""
    id_: str = uploaded(api)["id"]
    return id_


def test_openais_body(api: Api, world: World, file_id: str) -> None:
    answer = _create(
        api,
        {
            "input_file_id": file_id,
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            "metadata": {"user": "ada", "ü": "€"},
        },
    )
    assert answer.status_code == 200, answer.text
    batch = answer.json
    assert {key: batch[key] for key in ("object", "endpoint", "input_file_id", "completion_window", "status", "metadata", "errors", "output_file_id", "model")} == {
        "object": "batch", "endpoint": "/v1/embeddings", "input_file_id": file_id,
        "completion_window": "24h", "status": "validating", "metadata": {"user": "ada", "ü": "€"},
        "errors": None, "output_file_id": None, "model": None,
    }  # fmt: skip
    assert batch["expires_at"] == batch["created_at"] + 86400
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["x_lowtide"]["user"] == "ada"
    assert api("GET", f"/v1/batches/{batch['id']}").json == batch
    found = parse_batch_id(batch["id"])
    assert found is not None
    assert world.events(found) == {EventType.BATCH_CREATED.value: 1}


def test_the_originals_body(api: Api, file_id: str) -> None:
    batch = _create(api, {"inputFileId": file_id, "userId": "grace"}).json
    assert (batch["input_file_id"], batch["x_lowtide"]["user"]) == (file_id, "grace")
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/embeddings", "24h")


def test_unknown_fields_are_tolerated(api: Api, file_id: str) -> None:
    body = {"input_file_id": file_id, "new_field": {"deep": [1, None]}, "service_tier": "flex"}
    assert _create(api, body).status_code == 200


BAD_BODIES = [
    pytest.param({}, 400, "input_file_id", id="no file"),
    pytest.param({"input_file_id": ""}, 400, "input_file_id", id="empty file"),
    pytest.param({"input_file_id": None}, 400, "input_file_id", id="null file"),
    pytest.param({"input_file_id": 7}, 400, "input_file_id", id="numeric file"),
    pytest.param({"input_file_id": "x"}, 400, "input_file_id", id="no file id"),
    pytest.param({"input_file_id": f"batch_{ID}"}, 400, "input_file_id", id="a batch's id"),
    pytest.param({"input_file_id": f"file-{ID}"}, 404, "input_file_id", id="unknown file"),
    pytest.param({"endpoint": "/v1/nothing"}, 400, "endpoint", id="unknown endpoint"),
    pytest.param({"endpoint": ""}, 400, "endpoint", id="empty endpoint"),
    pytest.param({"endpoint": []}, 400, "endpoint", id="endpoint a list"),
    pytest.param({"completion_window": "1s"}, 400, "completion_window", id="unknown unit"),
    pytest.param({"completion_window": "8d"}, 400, "completion_window", id="window too long"),
    pytest.param({"completion_window": ""}, 400, "completion_window", id="empty window"),
    pytest.param({"completion_window": 24}, 400, "completion_window", id="window a number"),
    pytest.param({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata", id="17 pairs"),
    pytest.param({"metadata": {"k" * 65: ""}}, 400, "metadata", id="long key"),
    pytest.param({"metadata": {"k": "v" * 513}}, 400, "metadata", id="long value"),
    pytest.param({"metadata": {"k": 1}}, 400, "metadata", id="value a number"),
    pytest.param({"metadata": []}, 400, "metadata", id="metadata a list"),
    pytest.param({"metadata": {"k": "\x00"}}, 400, "metadata", id="NUL in a value"),
    pytest.param({"metadata": {"\x00": "v"}}, 400, "metadata", id="NUL in a key"),
    pytest.param(
        {"output_expires_after": {"anchor": "now", "seconds": 3600}}, 400, "output_expires_after",
        id="a wrong anchor",
    ),
    pytest.param(
        {"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400,
        "output_expires_after", id="expires too soon",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "param"), BAD_BODIES)
def test_bad_bodies(
    api: Api, world: World, file_id: str, changes: dict[str, Any], status: int, param: str
) -> None:
    body = {"input_file_id": file_id} | changes if changes else {}
    answer = _create(api, body)
    assert answer.status_code == status, answer.text
    assert answer.json["error"]["param"] == param
    assert world.rows("SELECT 1 FROM batches") == []
    assert world.rows("SELECT 1 FROM outbox") == []


NO_OBJECTS = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"input_file_id": NaN}', b"[" * 100_000, b"{}" * 2,
    rb'{"input_file_id": "\ud800"}', b'{"a":1' * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("body", NO_OBJECTS, ids=lambda body: repr(body[:20]))
def test_bodies_that_are_no_json_object(api: Api, body: bytes) -> None:
    answer: Any = api("POST", "/v1/batches", data=body, content_type="application/json")
    assert (answer.status_code, answer.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(("size", "status"), [(1 << 20, 200), ((1 << 20) + 1, 413), (5 << 20, 413)])
def test_bodies_are_bounded(api: Api, file_id: str, size: int, status: int) -> None:
    body = json.dumps({"input_file_id": file_id}).encode().ljust(size)
    answer = api("POST", "/v1/batches", data=body, content_type="application/json")
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
def test_content_types(api: Api, file_id: str, content_type: str, status: int) -> None:
    body = json.dumps({"input_file_id": file_id})
    answer = api("POST", "/v1/batches", data=body, content_type=content_type)
    assert answer.status_code == status


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_NAMES = "input_file_id inputFileId userId endpoint completion_window metadata x"
_FIELDS = st.sampled_from([*_NAMES.split(), "output_expires_after"])


@given(st.dictionaries(_FIELDS, _JSON, max_size=6) | _JSON)
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_no_body_fails_unanswered(api: Api, body: Any) -> None:
    answer = api("POST", "/v1/batches", data=json.dumps(body), content_type="application/json")
    assert answer.status_code in {400, 404}, answer.text


@given(
    st.dictionaries(_FIELDS.filter(lambda name: "nput" not in name), _JSON, max_size=4),
    st.text(max_size=30),
)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_no_body_about_a_real_file_fails_unanswered(
    api: Api, world: World, body: Any, user: str
) -> None:
    file = world.file()
    whole = {"userId": user} | body | {"input_file_id": f"file-{file.id.hex}"}
    answer = api("POST", "/v1/batches", data=json.dumps(whole), content_type="application/json")
    assert answer.status_code in {200, 400}, answer.text


@given(st.binary(max_size=60))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_no_bytes_fail_unanswered(api: Api, body: bytes) -> None:
    answer = api("POST", "/v1/batches", data=body, content_type="application/json")
    assert answer.status_code == 400


def test_an_idempotency_key_returns_the_same_batch(api: Api, world: World, file_id: str) -> None:
    body = {"input_file_id": file_id}
    key = {"Idempotency-Key": "once"}
    first = _create(api, body, **key).json
    assert _create(api, body, **key).json == first
    assert _create(api, body, **{"Idempotency-Key": "twice"}).json["id"] != first["id"]
    assert _create(api, body).json["id"] != first["id"]
    assert world.value("SELECT count(*) FROM batches") == 3


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "/v1/embeddings"},
        {"completion_window": "1h"},
        {"metadata": {"a": "c"}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 7200}},
        {"userId": "ada"},
        {"input_file_id": "another"},
    ],
    ids=str,
)
def test_an_idempotency_key_with_another_body_is_refused(
    api: Api, world: World, file_id: str, change: dict[str, Any]
) -> None:
    body: dict[str, Any] = {"input_file_id": file_id, "metadata": {"a": "b"}}
    if "input_file_id" in change:
        change = {"input_file_id": uploaded(api)["id"]}
    key = {"Idempotency-Key": "once"}
    first = _create(api, body, **key)
    refused = _create(api, body | change, **key)
    assert refused.status_code == 422
    assert refused.json["error"]["code"] == "idempotency_key_reused"
    assert refused.json["error"]["param"] == "Idempotency-Key"
    assert _create(api, body, **key).json == first.json
    assert world.value("SELECT count(*) FROM batches") == 1


def test_a_body_is_the_same_however_it_is_written(api: Api, file_id: str) -> None:
    key = {"Idempotency-Key": "once"}
    bodies = [
        {"input_file_id": file_id, "metadata": {"a": "b", "c": "d"}},
        {"metadata": {"c": "d", "a": "b"}, "input_file_id": file_id, "endpoint": None},
        {"inputFileId": file_id, "metadata": {"a": "b", "c": "d"}, "unknown": 1},
    ]
    assert len({_create(api, body, **key).json["id"] for body in bodies}) == 1


def test_a_key_from_before_digests_fits_any_body(api: Api, world: World, file_id: str) -> None:
    key = {"Idempotency-Key": "once"}
    first = _create(api, {"input_file_id": file_id}, **key).json
    world.run("UPDATE batches SET idempotency_digest = NULL")
    again = _create(api, {"input_file_id": file_id, "completion_window": "1h"}, **key)
    assert (again.status_code, again.json["id"]) == (200, first["id"])


def test_a_retry_after_its_input_was_deleted_returns_the_batch(api: Api, file_id: str) -> None:
    body = {"input_file_id": file_id}
    key = {"Idempotency-Key": "once"}
    first = _create(api, body, **key).json
    assert api("DELETE", f"/v1/files/{file_id}").status_code == 200
    again = _create(api, body, **key)
    assert (again.status_code, again.json) == (200, first)
    assert _create(api, body | {"completion_window": "1h"}, **key).status_code == 422
    for other in ({}, {"Idempotency-Key": "twice"}):
        refused = _create(api, body, **other)
        assert (refused.status_code, refused.json["error"]["param"]) == (404, "input_file_id")


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_idempotency_key_is_none(api: Api, file_id: str, key: str) -> None:
    ids = {
        _create(api, {"input_file_id": file_id}, **{"Idempotency-Key": key}).json["id"]
        for _ in range(2)
    }
    assert len(ids) == 2


def test_a_huge_idempotency_key_is_refused(api: Api, file_id: str) -> None:
    answer = _create(api, {"input_file_id": file_id}, **{"Idempotency-Key": "k" * 300})
    assert (answer.status_code, answer.json["error"]["param"]) == (400, "Idempotency-Key")


def test_pages_are_newest_first(api: Api, file_id: str) -> None:
    ids = [_create(api, {"input_file_id": file_id}).json["id"] for _ in range(5)]
    first: Any = api("GET", "/v1/batches?limit=3").json
    assert [batch["id"] for batch in first["data"]] == ids[:1:-1]
    assert (first["object"], first["has_more"], first["last_id"]) == ("list", True, ids[2])
    rest: Any = api("GET", f"/v1/batches?limit=3&after={ids[2]}").json
    assert [batch["id"] for batch in rest["data"]] == ids[1::-1]
    assert (rest["has_more"], rest["first_id"], rest["last_id"]) == (False, ids[1], ids[0])


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "000000000101", "1" * 5000])
def test_limits_are_bounded(api: Api, limit: str) -> None:
    assert api("GET", f"/v1/batches?limit={limit}").status_code == 400


def test_cancelling(api: Api, file_id: str) -> None:
    batch = _create(api, {"input_file_id": file_id}).json
    path = f"/v1/batches/{batch['id']}/cancel"
    first: Any = api("POST", path).json
    assert (first["status"], first["cancelling_at"] is not None) == ("cancelling", True)
    assert api("POST", path).json == first


def test_what_is_over_cannot_be_cancelled(api: Api, world: World, file_id: str) -> None:
    batch = _create(api, {"input_file_id": file_id}).json
    world.run("UPDATE batches SET status = 'failed', failed_at = now()")
    answer: Any = api("POST", f"/v1/batches/{batch['id']}/cancel")
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "batch_not_cancellable")


@pytest.mark.parametrize(
    ("method", "tail"),
    [("GET", ""), ("POST", "/cancel"), ("GET", "/requests"), ("GET", "/results")],
)
def test_another_tenants_batch_is_not_there(api: Api, world: World, method: str, tail: str) -> None:
    foreign = world.batch(2, tenant=world.tenant("other"))
    answer: Any = api(method, f"/v1/batches/batch_{foreign.hex}{tail}")
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "not_found")
    listed: Any = api("GET", "/v1/batches").json
    assert listed["data"] == []
    assert world.row(foreign).status == "in_progress"


def test_another_tenants_file_cannot_be_run(api: Api, world: World) -> None:
    foreign = world.file(world.tenant("other"))
    answer = _create(api, {"input_file_id": f"file-{foreign.id.hex}"})
    assert (answer.status_code, answer.json["error"]["param"]) == (404, "input_file_id")


def test_a_failed_batch_tells_every_problem(api: Api, world: World, file_id: str) -> None:
    from lowtide.files.lines import Problem

    batch = _create(api, {"input_file_id": file_id}).json
    found = parse_batch_id(batch["id"])
    assert found is not None
    world.splits.reject(found, [Problem("c", "m", "p", 3), Problem("d", "n")])
    failed: Any = api("GET", f"/v1/batches/{batch['id']}").json
    assert failed["status"] == "failed"
    assert failed["errors"] == {
        "object": "list",
        "data": [
            {"code": "c", "message": "m", "param": "p", "line": 3},
            {"code": "d", "message": "n", "param": None, "line": None},
        ],
    }


def test_the_lines_and_results_of_a_running_batch(api: Api, world: World) -> None:
    batch = world.batch(5)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    first, second, _ = world.queue.claim(lease, Pool.SPOT, 3)
    world.queue.settle(lease, [done(first, body=b'{"n": 1.0}')], [])
    path = f"/v1/batches/batch_{batch.hex}"
    states: Any = api("GET", f"{path}/requests").json
    assert [request["status"] for request in states["data"]] == [
        "Completed",
        "Running",
        "Running",
        "Queued",
        "Queued",
    ]
    running: Any = api("GET", f"{path}/requests?status=Running&limit=1").json
    assert ([request["line"] for request in running["data"]], running["has_more"]) == ([2], True)
    answer = api("GET", f"{path}/results")
    assert answer.data.count(b"\n") == 1
    assert b'"body":{"n": 1.0}' in answer.data
    assert answer.headers["x-lowtide-complete"] == "false"
    cursor = answer.headers["x-lowtide-cursor"]
    assert api("GET", f"{path}/results?after={cursor}").data == b""
    world.queue.settle(lease, [done(second)], [])
    more = api("GET", f"{path}/results?after={cursor}")
    assert [json.loads(line_)["custom_id"] for line_ in more.data.splitlines()] == ["2"]


@pytest.mark.parametrize(
    "query",
    [
        "requests?after=-1", "requests?after=9999999999", "requests?after=x", "requests?limit=1001",
        "requests?status=queued", "requests?status=%00", "requests?pool=x",
        f"requests?after=batch_req_{'f' * 40}", "results?after=1", "results?after=1.2.3",
        "results?after=-1.0", f"results?after={'9' * 30}.1", "results?after=1.9999999999",
        "results?limit=10001", "results?after=%D9%A1.%D9%A1",
    ],
)  # fmt: skip
def test_arguments_out_of_bounds_are_refused(api: Api, world: World, query: str) -> None:
    batch = world.batch(1)
    answer: Any = api("GET", f"/v1/batches/batch_{batch.hex}/{query}")
    assert (answer.status_code, answer.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "query",
    [
        "requests?after=999999999",
        f"requests?after=batch_req_{'0' * 39}1",
        f"results?after={'9' * 19}.999999999",
    ],
)
def test_arguments_at_their_bounds_are_taken(api: Api, world: World, query: str) -> None:
    batch = world.batch(1)
    assert api("GET", f"/v1/batches/batch_{batch.hex}/{query}").status_code == 200


def test_models_are_those_in_use(api: Api, world: World) -> None:
    world.batch(1, tenant=world.tenant("other"))
    assert api("GET", "/v1/models").json == {"object": "list", "data": []}
    world.batch(1)
    models: Any = api("GET", "/v1/models").json
    assert [model["id"] for model in models["data"]] == ["m"]
    assert api("GET", "/v1/models/m").status_code == 200
    assert api("GET", "/v1/models/%00").status_code == 404


CALLER, OTHER = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("upload", "create", "continued"),
    [
        pytest.param(None, None, None, id="nobody names one"),
        pytest.param(CALLER, None, CALLER, id="the file's goes on"),
        pytest.param(CALLER, OTHER, OTHER, id="the caller's wins"),
        pytest.param(None, OTHER, OTHER, id="only the caller names one"),
    ],
)
def test_a_batch_continues_a_trace(
    api: Api, world: World, upload: str | None, create: str | None, continued: str | None
) -> None:
    def header(trace: str | None) -> dict[str, str]:
        return {} if trace is None else {"traceparent": f"00-{trace}-{'1' * 16}-01"}

    body = form(part("purpose", b"batch"), part("file", line(), "in.jsonl"))
    headers = {"Content-Type": CONTENT_TYPE, **header(upload)}
    stored = api("POST", "/v1/files", data=body, headers=headers)
    answer = _create(api, {"input_file_id": stored.json["id"]}, **header(create))
    # Tracing is off: there is no span of this answer to tell of.
    assert "traceresponse" not in answer.headers
    batch = answer.json
    assert batch["x_lowtide"]["trace_id"] == continued
    assert api("GET", f"/v1/batches/{batch['id']}").json["x_lowtide"]["trace_id"] == continued
    rows = world.rows("SELECT traceparent FROM outbox WHERE subject = :id", id=batch["id"])
    assert [row.traceparent and row.traceparent[3:35] for row in rows] == [continued]
