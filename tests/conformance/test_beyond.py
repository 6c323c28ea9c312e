"""Lowtide's additions: requests and results of running batches, API documents, health."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle
from tests.conformance.features import Area, proves
from tests.conformance.lines import held, jsonl, request
from tests.conformance.shapes import REQUEST, check_error, check_page
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.conformance.conftest import Ended
    from tests.conformance.server import Own, Server

PAGES = "`batches/{id}/requests`: the lines of a batch, by status and pool"
BUCKETS = "`input_url` and `output_url`: only in registered buckets"
PRIORITY = "`x_lowtide.priority` of a batch, from -10 to 10: the order among a tenant's batches whose deadlines hold"
SEARCH = "`search`: batches, files and requests by id, `custom_id`, user or metadata value"
STREAM = "`batches/{id}/results`: results while the batch runs, from a cursor on"


@pytest.fixture(scope="module")
def running(server: Server, own: Own) -> Iterator[dict[str, Any]]:
    """A batch with three answered and two running requests."""
    answered = [request(f"answered-{number}") for number in range(3)]
    batch = server.create(jsonl(*answered, *held("running", 2)))
    path = f"/v1/batches/{batch['id']}/requests"

    def is_half_done() -> bool:
        statuses = [state["status"] for state in server.json(path)["data"]]
        return statuses == ["Completed"] * 3 + ["Running"] * 2

    until(is_half_done, "three requests are answered and two run")
    yield batch
    own.engine.release("running")
    server.finish(batch)


def _results(server: Server, batch_id: str, **parameters: Any) -> httpx.Response:
    response = server.http.get(f"/v1/batches/{batch_id}/results", params=parameters)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("application/x-ndjson")
    return response


def _ids(response: httpx.Response) -> list[str]:
    return [line.custom_id for line in oracle.outcomes(response.content)]


@proves(Area.BEYOND, PAGES)
def test_requests_are_listed_in_input_order(server: Server, completed: Ended) -> None:
    page = server.json(f"/v1/batches/{completed.batch['id']}/requests")
    states = check_page(page)
    assert [state["line"] for state in states] == list(range(1, len(states) + 1))
    assert [state["custom_id"] for state in states] == [
        line.custom_id for line in oracle.input_lines(completed.source)
    ]
    for state in states:
        assert set(state) == REQUEST
        assert (state["object"], state["status"]) in {
            ("batch.request", "Completed"),
            ("batch.request", "Failed"),
        }
        assert state["started_at"] <= state["finished_at"]
        assert (state["status"] == "Completed") == (state["status_code"] == 200)
        assert state["attempts"] >= 1


@proves(Area.BEYOND, PAGES)
def test_only_ended_requests_have_finished_at(server: Server, running: dict[str, Any]) -> None:
    for state in server.json(f"/v1/batches/{running['id']}/requests")["data"]:
        assert (state["finished_at"] is None) == (state["status"] == "Running")
        assert state["pool"] in {"spot", "dedicated"}


@proves(Area.BEYOND, PAGES)
@pytest.mark.parametrize(
    ("query", "count"),
    [
        pytest.param({"status": "Completed"}, 3, id="Completed"),
        pytest.param({"status": "Running"}, 2, id="Running"),
        pytest.param({"status": "Queued"}, 0, id="Queued"),
        pytest.param({"status": "Failed"}, 0, id="Failed"),
        pytest.param({"status": "Expired"}, 0, id="Expired"),
        pytest.param({"status": "Cancelled"}, 0, id="Cancelled"),
        pytest.param({"pool": "spot"}, 5, id="spot"),
        pytest.param({"pool": "dedicated"}, 0, id="dedicated"),
        pytest.param({"pool": "spot", "status": "Running"}, 2, id="both"),
    ],
)
def test_requests_are_filtered_by_status_and_pool(
    server: Server, running: dict[str, Any], query: dict[str, str], count: int
) -> None:
    page = server.json(f"/v1/batches/{running['id']}/requests", **query)
    states = check_page(page)
    assert len(states) == count
    assert all(state[name] == value for state in states for name, value in query.items())


@proves(Area.BEYOND, PAGES)
@pytest.mark.parametrize("cursor", ["id", "line"])
def test_requests_are_paged(server: Server, completed: Ended, cursor: str) -> None:
    path = f"/v1/batches/{completed.batch['id']}/requests"
    seen: list[int] = []
    parameters: dict[str, Any] = {"limit": 5}
    while True:
        page = server.json(path, **parameters)
        seen += [state["line"] for state in check_page(page)]
        if not page["has_more"]:
            break
        parameters["after"] = page["last_id"] if cursor == "id" else seen[-1]
    assert seen == list(range(1, completed.batch["request_counts"]["total"] + 1))


@proves(Area.BEYOND, PAGES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "running"),
        ("pool", "gpu"),
        ("limit", "0"),
        ("limit", "1001"),
        ("after", "abc"),
        ("after", "-1"),
        ("after", "9" * 30),
    ],
)
def test_invalid_request_arguments_are_refused(
    server: Server, completed: Ended, name: str, value: str
) -> None:
    path = f"/v1/batches/{completed.batch['id']}/requests"
    response = server.http.get(path, params={name: value})
    assert response.status_code == 400
    assert check_error(response.json())["param"] == name


@proves(Area.BEYOND, STREAM)
def test_results_of_ended_batch_equal_its_files(server: Server, completed: Ended) -> None:
    response = _results(server, completed.batch["id"])
    assert response.headers["x-lowtide-complete"] == "true"
    files = (completed.output + completed.errors).splitlines()
    assert sorted(response.content.splitlines()) == sorted(files)


@proves(Area.BEYOND, STREAM)
@pytest.mark.parametrize("limit", [1, 4, 12, 10_000])
def test_results_are_paged(server: Server, completed: Ended, limit: int) -> None:
    seen: list[str] = []
    parameters: dict[str, Any] = {"limit": limit}
    complete = "false"
    while complete == "false":
        response = _results(server, completed.batch["id"], **parameters)
        seen += _ids(response)
        assert len(_ids(response)) <= limit
        parameters["after"] = response.headers["x-lowtide-cursor"]
        complete = response.headers["x-lowtide-complete"]
    expected = [line.custom_id for line in oracle.input_lines(completed.source)]
    assert sorted(seen) == sorted(expected)


@proves(Area.BEYOND, STREAM)
def test_results_are_read_while_batch_runs(server: Server, own: Own) -> None:
    answered = [request(f"answered-{number}") for number in range(3)]
    batch = server.create(jsonl(*answered, *held("results", 2)))
    seen: list[str] = []
    cursor: dict[str, str] = {}

    def read(expected: int) -> Callable[[], bool]:
        def poll() -> bool:
            response = _results(server, batch["id"], **cursor)
            seen.extend(_ids(response))
            cursor["after"] = response.headers["x-lowtide-cursor"]
            return len(seen) == expected and response.headers["x-lowtide-complete"] == complete

        return poll

    complete = "false"
    until(read(3), "three results are read while the batch runs")
    assert server.batch(batch["id"])["status"] == "in_progress"
    own.engine.release("results")
    complete = "true"
    until(read(5), "the last results are read")
    assert sorted(seen) == sorted(line["custom_id"] for line in [*answered, *held("results", 2)])
    assert _ids(_results(server, batch["id"], **cursor)) == []


@proves(Area.BEYOND, STREAM)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("after", "abc"),
        ("after", "1"),
        ("after", "-1.0"),
        ("after", "9" * 30 + ".1"),
        ("limit", "0"),
        ("limit", "10001"),
    ],
)
def test_invalid_result_arguments_are_refused(
    server: Server, completed: Ended, name: str, value: str
) -> None:
    path = f"/v1/batches/{completed.batch['id']}/results"
    response = server.http.get(path, params={name: value})
    assert response.status_code == 400
    assert check_error(response.json())["param"] == name


@proves(Area.BEYOND, "Unknown batches have neither requests nor results: 404")
@pytest.mark.parametrize("tail", ["requests", "results"])
@pytest.mark.parametrize("batch_id", ["batch_" + "0" * 32, "odd"], ids=["unknown", "malformed"])
def test_unknown_batch_has_no_requests_or_results(server: Server, batch_id: str, tail: str) -> None:
    response = server.http.get(f"/v1/batches/{batch_id}/{tail}")
    assert response.status_code == 404
    check_error(response.json())


@proves(Area.BEYOND, "`x_lowtide` on each batch: state of the promise, deadline, lines by pool")
def test_extension_has_sla_state_deadline_and_pools(completed: Ended) -> None:
    batch = completed.batch
    extension, counts = batch["x_lowtide"], batch["request_counts"]
    assert (extension["sla_state"], extension["deadline"]) == ("Met", batch["expires_at"])
    assert set(extension["pools"]) == {"spot", "dedicated"}
    assert sum(extension["pools"].values()) == counts["completed"] + counts["failed"]


@proves(Area.BEYOND, PRIORITY)
@pytest.mark.parametrize(
    ("extension", "priority"),
    [
        (None, 0),
        ({}, 0),
        ({"priority": None}, 0),
        ({"priority": -10}, -10),
        ({"priority": 10.0}, 10),
    ],
)
def test_priority_is_kept(server: Server, extension: dict[str, Any] | None, priority: int) -> None:
    batch = server.create(jsonl(request("a")), x_lowtide=extension)
    assert batch["x_lowtide"]["priority"] == priority
    assert server.finish(batch)["x_lowtide"]["priority"] == priority


@proves(Area.BEYOND, PRIORITY)
@pytest.mark.parametrize(
    ("priority", "fix"),
    [
        (-11, "from -10 to 10"),
        (11, "from -10 to 10"),
        (1e300, "from -10 to 10"),
        (1.5, "multiple of 1"),
        ("5", "Expected `int"),
        (True, "Expected `int"),
        ([1], "Expected `int"),
    ],
)
def test_other_priority_is_refused(server: Server, priority: object, fix: str) -> None:
    file = server.upload(jsonl(request("a")))["id"]
    body = {"input_file_id": file, "x_lowtide": {"priority": priority}}
    response = server.http.post("/v1/batches", json=body)
    assert response.status_code == 400
    error = check_error(response.json())
    assert error["param"] == "x_lowtide.priority"
    assert fix in error["message"]


@proves(Area.BEYOND, "An OpenAPI 3.1 document, and a page that shows it without any other server")
def test_openapi_document_lists_operations(server: Server) -> None:
    response = server.anonymous.get("/openapi.json")
    assert response.headers["Content-Type"] == "application/json"
    document = response.json()
    assert document["openapi"].startswith("3.1")
    operations = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert operations >= {
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("GET", "/v1/files/{file_id}"),
        ("GET", "/v1/files/{file_id}/content"),
        ("DELETE", "/v1/files/{file_id}"),
        ("POST", "/v1/uploads"),
        ("POST", "/v1/uploads/{upload_id}/parts"),
        ("POST", "/v1/uploads/{upload_id}/complete"),
        ("POST", "/v1/uploads/{upload_id}/cancel"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/batches"),
        ("GET", "/v1/batches/{batch_id}"),
        ("POST", "/v1/batches/{batch_id}/cancel"),
        ("GET", "/v1/batches/{batch_id}/requests"),
        ("GET", "/v1/batches/{batch_id}/results"),
        ("GET", "/v1/search"),
        ("GET", "/v1/dead_letters"),
        ("GET", "/v1/dead_letters/summary"),
        ("GET", "/v1/dead_letters/{letter_id}"),
        ("GET", "/v1/dead_letters/content"),
        ("POST", "/v1/dead_letters/requeue"),
        ("POST", "/v1/dead_letters/discard"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{name}"),
    }


@proves(Area.BEYOND, "An OpenAPI 3.1 document, and a page that shows it without any other server")
@pytest.mark.parametrize(
    ("schema", "path"), [("Batch", "/v1/batches"), ("File", "/v1/files"), ("Model", "/v1/models")]
)
def test_objects_have_documented_fields(
    server: Server, completed: Ended, schema: str, path: str
) -> None:
    assert completed.batch
    schemas = server.json("/openapi.json")["components"]["schemas"]
    listed = server.json(path)["data"][0]
    assert set(listed) == set(schemas[schema]["properties"])
    if schema == "Batch":
        assert set(listed["x_lowtide"]) == set(schemas["Extension"]["properties"])


@proves(Area.BEYOND, "An OpenAPI 3.1 document, and a page that shows it without any other server")
def test_docs_page_is_self_contained(server: Server) -> None:
    http = server.anonymous
    page = http.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert assets
    for path in assets:
        assert path.startswith("/docs/")
        assert http.get(path).status_code == 200
    assert http.get("/docs/nothing.js").status_code == 404


@proves(Area.BEYOND, SEARCH)
def test_search_finds_ended_batch_its_file_and_its_requests(
    server: Server, completed: Ended
) -> None:
    batch = completed.batch
    (first,) = server.json(f"/v1/batches/{batch['id']}/requests", limit=1)["data"]
    for kind, text in (
        ("batch", batch["id"]),
        ("file", batch["input_file_id"]),
        ("file", batch["output_file_id"]),
        ("request", first["id"]),
        ("request", first["custom_id"]),
    ):
        page = server.json("/v1/search", q=text)
        exact = [match for match in page["data"] if match["exact"] and match["kind"] == kind]
        assert batch["id"] in [match["batch"]["id"] for match in exact]
        assert page["data"][0]["exact"]


@proves(Area.BEYOND, SEARCH)
@pytest.mark.parametrize("query", ["", "?q=a", "?q=ab&limit=21"])
def test_invalid_search_is_refused(server: Server, query: str) -> None:
    response = server.http.get(f"/v1/search{query}")
    assert response.status_code == 400
    check_error(response.json())


@proves(Area.BEYOND, BUCKETS)
@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param({"input_url": "s3://unregistered/in.jsonl"}, "input_url", id="unregistered"),
        pytest.param({"input_url": "http://169.254.169.254/latest/"}, "input_url", id="address"),
        pytest.param({"input_url": "file:///etc/passwd"}, "input_url", id="file"),
        pytest.param(
            {"input_url": "s3://unregistered/a", "input_file_id": "file-" + "0" * 32},
            "input_url",
            id="both",
        ),
        pytest.param(
            {"input_file_id": "file-" + "0" * 32, "output_url": "s3://unregistered/out/"},
            "output_url",
            id="output",
        ),
    ],
)
def test_url_outside_registered_buckets_is_refused(
    server: Server, body: dict[str, Any], param: str
) -> None:
    response = server.http.post("/v1/batches", json={"endpoint": "/v1/chat/completions"} | body)
    assert response.status_code == 400
    check_error(response.json())
    assert response.json()["error"]["param"] == param


@proves(Area.BEYOND, "Health without a key")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_needs_no_key(server: Server, method: str, path: str) -> None:
    response = server.anonymous.request(method, path)
    assert response.status_code == 200
    assert response.content == (
        json.dumps({"status": "ok"}, separators=(",", ":")).encode() if method == "GET" else b""
    )


@proves(Area.BEYOND, "HEAD where GET is taken")
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/models"])
def test_head_is_accepted_and_has_no_body(server: Server, path: str) -> None:
    response = server.http.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Type"] == "application/json"
