"""`/v1/batches`: valid and invalid bodies, idempotency, pages, cancellation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowtide.core.ids import parse_batch_id
from lowtide.core.pools import Pool
from lowtide.events.model import EventType
from tests.http.forms import CONTENT_TYPE, form, line, part, upload
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
    id_: str = upload(api)["id"]
    return id_


def test_create_accepts_openai_body(api: Api, world: World, file_id: str) -> None:
    response = _create(
        api,
        {
            "input_file_id": file_id,
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            "metadata": {"user": "ada", "ü": "€"},
        },
    )
    assert response.status_code == 200, response.text
    batch = response.json
    assert {key: batch[key] for key in ("object", "endpoint", "input_file_id", "completion_window", "status", "metadata", "errors", "output_file_id", "model")} == {
        "object": "batch", "endpoint": "/v1/embeddings", "input_file_id": file_id,
        "completion_window": "24h", "status": "validating", "metadata": {"user": "ada", "ü": "€"},
        "errors": None, "output_file_id": None, "model": None,
    }  # fmt: skip
    assert batch["expires_at"] == batch["created_at"] + 86400
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["x_lowtide"]["user"] == "ada"
    assert api("GET", f"/v1/batches/{batch['id']}").json == batch
    batch_id = parse_batch_id(batch["id"])
    assert batch_id is not None
    assert world.events(batch_id) == {EventType.BATCH_CREATED.value: 1}


def test_create_accepts_original_body(api: Api, file_id: str) -> None:
    batch = _create(api, {"inputFileId": file_id, "userId": "grace"}).json
    assert (batch["input_file_id"], batch["x_lowtide"]["user"]) == (file_id, "grace")
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/embeddings", "24h")


@pytest.mark.parametrize("priority", [-10, 0, 10, 7.0])
def test_priority_is_returned(api: Api, file_id: str, priority: float) -> None:
    body = {"input_file_id": file_id, "x_lowtide": {"priority": priority}}
    batch = _create(api, body).json
    assert batch["x_lowtide"]["priority"] == priority
    assert api("GET", f"/v1/batches/{batch['id']}").json == batch


def test_unknown_fields_are_ignored(api: Api, file_id: str) -> None:
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
    pytest.param({"x_lowtide": {"priority": 11}}, 400, "x_lowtide.priority", id="priority 11"),
    pytest.param({"x_lowtide": {"priority": -11}}, 400, "x_lowtide.priority", id="priority -11"),
    pytest.param({"x_lowtide": {"priority": 0.5}}, 400, "x_lowtide.priority", id="half a priority"),
    pytest.param({"x_lowtide": {"priority": "high"}}, 400, "x_lowtide.priority", id="priority a word"),
    pytest.param({"x_lowtide": {"prio": 1}}, 400, "x_lowtide", id="an unknown extension"),
    pytest.param({"x_lowtide": 5}, 400, "x_lowtide", id="extension a number"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "param"), BAD_BODIES)
def test_invalid_body_is_rejected(
    api: Api, world: World, file_id: str, changes: dict[str, Any], status: int, param: str
) -> None:
    body = {"input_file_id": file_id} | changes if changes else {}
    response = _create(api, body)
    assert response.status_code == status, response.text
    assert response.json["error"]["param"] == param
    assert world.rows("SELECT 1 FROM batches") == []
    assert world.rows("SELECT 1 FROM outbox") == []


NOT_OBJECTS = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"input_file_id": NaN}', b"[" * 100_000, b"{}" * 2,
    rb'{"input_file_id": "\ud800"}', b'{"a":1' * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("body", NOT_OBJECTS, ids=lambda body: repr(body[:20]))
def test_body_must_be_json_object(api: Api, body: bytes) -> None:
    response: Any = api("POST", "/v1/batches", data=body, content_type="application/json")
    assert (response.status_code, response.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(("size", "status"), [(1 << 20, 200), ((1 << 20) + 1, 413), (5 << 20, 413)])
def test_body_size_is_limited(api: Api, file_id: str, size: int, status: int) -> None:
    body = json.dumps({"input_file_id": file_id}).encode().ljust(size)
    response = api("POST", "/v1/batches", data=body, content_type="application/json")
    assert response.status_code == status, response.text


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
def test_content_type_must_be_json(api: Api, file_id: str, content_type: str, status: int) -> None:
    body = json.dumps({"input_file_id": file_id})
    response = api("POST", "/v1/batches", data=body, content_type=content_type)
    assert response.status_code == status


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_NAMES = "input_file_id inputFileId userId endpoint completion_window metadata x"
_FIELDS = st.sampled_from([*_NAMES.split(), "output_expires_after", "x_lowtide"])


@given(st.dictionaries(_FIELDS, _JSON, max_size=6) | _JSON)
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_random_json_body_returns_4xx(api: Api, body: Any) -> None:
    response = api("POST", "/v1/batches", data=json.dumps(body), content_type="application/json")
    assert response.status_code in {400, 404}, response.text


@given(
    st.dictionaries(_FIELDS.filter(lambda name: "nput" not in name), _JSON, max_size=4),
    st.text(max_size=30),
)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_random_json_body_with_real_file_never_returns_5xx(
    api: Api, world: World, body: Any, user: str
) -> None:
    file = world.file()
    payload = {"userId": user} | body | {"input_file_id": f"file-{file.id.hex}"}
    response = api("POST", "/v1/batches", data=json.dumps(payload), content_type="application/json")
    assert response.status_code in {200, 400}, response.text


@given(st.binary(max_size=60))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_random_bytes_return_400(api: Api, body: bytes) -> None:
    response = api("POST", "/v1/batches", data=body, content_type="application/json")
    assert response.status_code == 400


def test_same_idempotency_key_returns_same_batch(api: Api, world: World, file_id: str) -> None:
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
        {"x_lowtide": {"priority": 1}},
        {"input_file_id": "another"},
    ],
    ids=str,
)
def test_idempotency_key_with_different_body_is_rejected(
    api: Api, world: World, file_id: str, change: dict[str, Any]
) -> None:
    body: dict[str, Any] = {"input_file_id": file_id, "metadata": {"a": "b"}}
    if "input_file_id" in change:
        change = {"input_file_id": upload(api)["id"]}
    key = {"Idempotency-Key": "once"}
    first = _create(api, body, **key)
    rejected = _create(api, body | change, **key)
    assert rejected.status_code == 422
    assert rejected.json["error"]["code"] == "idempotency_key_reused"
    assert rejected.json["error"]["param"] == "Idempotency-Key"
    assert _create(api, body, **key).json == first.json
    assert world.value("SELECT count(*) FROM batches") == 1


def test_equivalent_bodies_share_idempotency_key(api: Api, file_id: str) -> None:
    key = {"Idempotency-Key": "once"}
    bodies = [
        {"input_file_id": file_id, "metadata": {"a": "b", "c": "d"}},
        {"metadata": {"c": "d", "a": "b"}, "input_file_id": file_id, "endpoint": None},
        {"inputFileId": file_id, "metadata": {"a": "b", "c": "d"}, "unknown": 1},
    ]
    assert len({_create(api, body, **key).json["id"] for body in bodies}) == 1


def test_idempotency_key_without_digest_accepts_any_body(
    api: Api, world: World, file_id: str
) -> None:
    key = {"Idempotency-Key": "once"}
    first = _create(api, {"input_file_id": file_id}, **key).json
    world.run("UPDATE batches SET idempotency_digest = NULL")
    repeated = _create(api, {"input_file_id": file_id, "completion_window": "1h"}, **key)
    assert (repeated.status_code, repeated.json["id"]) == (200, first["id"])


def test_retry_returns_batch_after_input_was_deleted(api: Api, file_id: str) -> None:
    body = {"input_file_id": file_id}
    key = {"Idempotency-Key": "once"}
    first = _create(api, body, **key).json
    assert api("DELETE", f"/v1/files/{file_id}").status_code == 200
    repeated = _create(api, body, **key)
    assert (repeated.status_code, repeated.json) == (200, first)
    assert _create(api, body | {"completion_window": "1h"}, **key).status_code == 422
    for other in ({}, {"Idempotency-Key": "twice"}):
        rejected = _create(api, body, **other)
        assert (rejected.status_code, rejected.json["error"]["param"]) == (404, "input_file_id")


@pytest.mark.parametrize("key", ["", " "])
def test_blank_idempotency_key_is_ignored(api: Api, file_id: str, key: str) -> None:
    ids = {
        _create(api, {"input_file_id": file_id}, **{"Idempotency-Key": key}).json["id"]
        for _ in range(2)
    }
    assert len(ids) == 2


def test_too_long_idempotency_key_is_rejected(api: Api, file_id: str) -> None:
    response = _create(api, {"input_file_id": file_id}, **{"Idempotency-Key": "k" * 300})
    assert (response.status_code, response.json["error"]["param"]) == (400, "Idempotency-Key")


def test_pages_are_newest_first(api: Api, file_id: str) -> None:
    ids = [_create(api, {"input_file_id": file_id}).json["id"] for _ in range(5)]
    first: Any = api("GET", "/v1/batches?limit=3").json
    assert [batch["id"] for batch in first["data"]] == ids[:1:-1]
    assert (first["object"], first["has_more"], first["last_id"]) == ("list", True, ids[2])
    rest: Any = api("GET", f"/v1/batches?limit=3&after={ids[2]}").json
    assert [batch["id"] for batch in rest["data"]] == ids[1::-1]
    assert (rest["has_more"], rest["first_id"], rest["last_id"]) == (False, ids[1], ids[0])


def test_pages_are_filtered_by_status_and_user(api: Api, file_id: str) -> None:
    users = ("ada", "bob", "Adam")
    ids = [_create(api, {"input_file_id": file_id, "userId": user}).json["id"] for user in users]
    api("POST", f"/v1/batches/{ids[0]}/cancel")

    def listed(query: str) -> list[str]:
        return [batch["id"] for batch in api("GET", f"/v1/batches?{query}").json["data"]]

    assert listed("user=ada") == [ids[2], ids[0]]
    assert listed("status=validating") == [ids[2], ids[1]]
    assert listed("status=cancelling&user=ada") == [ids[0]]
    assert listed("user=ada&limit=1") == [ids[2]]
    refused = api("GET", "/v1/batches?status=Failed")
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "status")


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "000000000101", "1" * 5000])
def test_limit_out_of_bounds_is_rejected(api: Api, limit: str) -> None:
    assert api("GET", f"/v1/batches?limit={limit}").status_code == 400


def test_cancelling_twice_returns_same_batch(api: Api, file_id: str) -> None:
    batch = _create(api, {"input_file_id": file_id}).json
    path = f"/v1/batches/{batch['id']}/cancel"
    first: Any = api("POST", path).json
    assert (first["status"], first["cancelling_at"] is not None) == ("cancelling", True)
    assert api("POST", path).json == first


def test_failed_batch_cannot_be_cancelled(api: Api, world: World, file_id: str) -> None:
    batch = _create(api, {"input_file_id": file_id}).json
    world.run("UPDATE batches SET status = 'failed', failed_at = now()")
    response: Any = api("POST", f"/v1/batches/{batch['id']}/cancel")
    assert (response.status_code, response.json["error"]["code"]) == (409, "batch_not_cancellable")


@pytest.mark.parametrize(
    ("method", "tail"),
    [("GET", ""), ("POST", "/cancel"), ("GET", "/requests"), ("GET", "/results")],
)
def test_foreign_batch_returns_404(api: Api, world: World, method: str, tail: str) -> None:
    foreign = world.batch(2, tenant=world.tenant("other"))
    response: Any = api(method, f"/v1/batches/batch_{foreign.hex}{tail}")
    assert (response.status_code, response.json["error"]["code"]) == (404, "not_found")
    listed: Any = api("GET", "/v1/batches").json
    assert listed["data"] == []
    assert world.row(foreign).status == "in_progress"


def test_foreign_input_file_returns_404(api: Api, world: World) -> None:
    foreign = world.file(world.tenant("other"))
    response = _create(api, {"input_file_id": f"file-{foreign.id.hex}"})
    assert (response.status_code, response.json["error"]["param"]) == (404, "input_file_id")


def test_failed_batch_lists_all_problems(api: Api, world: World, file_id: str) -> None:
    from lowtide.files.lines import Problem

    batch = _create(api, {"input_file_id": file_id}).json
    batch_id = parse_batch_id(batch["id"])
    assert batch_id is not None
    world.splits.reject(batch_id, [Problem("c", "m", "p", 3), Problem("d", "n")])
    failed: Any = api("GET", f"/v1/batches/{batch['id']}").json
    assert failed["status"] == "failed"
    assert failed["errors"] == {
        "object": "list",
        "data": [
            {"code": "c", "message": "m", "param": "p", "line": 3},
            {"code": "d", "message": "n", "param": None, "line": None},
        ],
    }


def test_running_batch_serves_requests_and_results(api: Api, world: World) -> None:
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
    response = api("GET", f"{path}/results")
    assert response.data.count(b"\n") == 1
    assert b'"body":{"n": 1.0}' in response.data
    assert response.headers["x-lowtide-complete"] == "false"
    cursor = response.headers["x-lowtide-cursor"]
    assert api("GET", f"{path}/results?after={cursor}").data == b""
    world.queue.settle(lease, [done(second)], [])
    more = api("GET", f"{path}/results?after={cursor}")
    assert [json.loads(result)["custom_id"] for result in more.data.splitlines()] == ["2"]


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
def test_arguments_out_of_bounds_are_rejected(api: Api, world: World, query: str) -> None:
    batch = world.batch(1)
    response: Any = api("GET", f"/v1/batches/batch_{batch.hex}/{query}")
    assert (response.status_code, response.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "query",
    [
        "requests?after=999999999",
        f"requests?after=batch_req_{'0' * 39}1",
        f"results?after={'9' * 19}.999999999",
    ],
)
def test_arguments_at_bounds_are_accepted(api: Api, world: World, query: str) -> None:
    batch = world.batch(1)
    assert api("GET", f"/v1/batches/batch_{batch.hex}/{query}").status_code == 200


def test_models_lists_those_in_use_by_tenant(api: Api, world: World) -> None:
    world.batch(1, tenant=world.tenant("other"))
    assert api("GET", "/v1/models").json == {"object": "list", "data": []}
    world.batch(1)
    models: Any = api("GET", "/v1/models").json
    assert [model["id"] for model in models["data"]] == ["m"]
    assert api("GET", "/v1/models/m").status_code == 200
    assert api("GET", "/v1/models/%00").status_code == 404


UPLOAD_TRACE, CREATE_TRACE = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("upload", "create", "expected"),
    [
        pytest.param(None, None, None, id="no trace"),
        pytest.param(UPLOAD_TRACE, None, UPLOAD_TRACE, id="trace of upload"),
        pytest.param(UPLOAD_TRACE, CREATE_TRACE, CREATE_TRACE, id="create overrides upload"),
        pytest.param(None, CREATE_TRACE, CREATE_TRACE, id="trace of create"),
    ],
)
def test_batch_continues_trace_of_create_or_upload(
    api: Api, world: World, upload: str | None, create: str | None, expected: str | None
) -> None:
    def header(trace: str | None) -> dict[str, str]:
        return {} if trace is None else {"traceparent": f"00-{trace}-{'1' * 16}-01"}

    body = form(part("purpose", b"batch"), part("file", line(), "in.jsonl"))
    headers = {"Content-Type": CONTENT_TYPE, **header(upload)}
    file = api("POST", "/v1/files", data=body, headers=headers)
    response = _create(api, {"input_file_id": file.json["id"]}, **header(create))
    # Tracing is off, so the response has no span to report.
    assert "traceresponse" not in response.headers
    batch = response.json
    assert batch["x_lowtide"]["trace_id"] == expected
    assert api("GET", f"/v1/batches/{batch['id']}").json["x_lowtide"]["trace_id"] == expected
    rows = world.rows("SELECT traceparent FROM outbox WHERE subject = :id", id=batch["id"])
    assert [row.traceparent and row.traceparent[3:35] for row in rows] == [expected]
