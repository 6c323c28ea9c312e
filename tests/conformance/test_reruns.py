"""`/v1/reruns` and `/v1/batches/{id}/failed_inputs`: failed requests run again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import oracle
from tests.conformance.features import Area, proves
from tests.conformance.lines import broken, held, jsonl, request
from tests.conformance.shapes import check_error
from tests.e2e.waiting import until

if TYPE_CHECKING:
    import httpx

    from tests.conformance.server import Own, Server

RERUN = "`reruns`: the failed, expired and cancelled requests of an ended batch, in a new batch"
INPUTS = "`batches/{id}/failed_inputs`: the input lines of these requests"
UNKNOWN = "batch_" + "0" * 32


def _post(server: Server, body: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return server.http.post("/v1/reruns", json=body, headers=headers)


def _inputs(server: Server, batch: str, **query: str) -> bytes:
    response = server.http.get(f"/v1/batches/{batch}/failed_inputs", params=query)
    assert response.status_code == 200, response.text
    return response.content


@proves(Area.BEYOND, RERUN)
def test_failed_requests_run_again_in_new_batch(server: Server, own: Own) -> None:
    failing = jsonl(*broken("rerun", 3))
    source = server.finish(server.create(jsonl(request("fine")) + failing))["id"]
    assert _inputs(server, source) == failing
    body = {"batch_id": source}
    assert _post(server, body | {"dry_run": True}).json()["requests"] == 3
    own.engine.mend("rerun")
    first = _post(server, body, key=f"rerun {source}").json()
    assert (first["object"], first["source_batch_id"], first["requests"]) == ("rerun", source, 3)
    assert _post(server, body, key=f"rerun {source}").json() == first
    again = server.finish(server.json(f"/v1/batches/{first['batch_id']}"))
    assert (again["status"], again["request_counts"]["completed"]) == ("completed", 3)
    assert again["metadata"] == {"rerun_of": source}


@proves(Area.BEYOND, INPUTS)
def test_failed_inputs_are_selected_by_outcome(server: Server, own: Own) -> None:
    batch = server.create(jsonl(*held("selected", 200)))["id"]
    path = f"/v1/batches/{batch}/requests"
    until(lambda: server.json(path, status="Running")["data"], "a request runs")
    server.http.post(f"/v1/batches/{batch}/cancel")
    # A worker may have claimed all of them: it has to learn of the cancellation before they run.
    until(lambda: server.json(path, status="Cancelled")["data"], "a request is cancelled")
    own.engine.release("selected")
    ended = server.finish(server.json(f"/v1/batches/{batch}"))
    cancelled = [
        line.custom_id
        for line in oracle.outcomes(server.content(ended["error_file_id"]))
        if line.error and line.error["code"] == "batch_cancelled"
    ]
    assert cancelled
    inputs = _inputs(server, batch, outcome="Cancelled").splitlines()
    assert [json.loads(line)["custom_id"] for line in inputs] == cancelled
    assert _inputs(server, batch, outcome="Failed") == b""


@proves(Area.BEYOND, RERUN)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param({}, 400, id="no batch"),
        pytest.param({"batch_id": UNKNOWN}, 404, id="unknown batch"),
        pytest.param({"batch_id": UNKNOWN, "outcomes": ["Completed"]}, 400, id="outcome"),
    ],
)
def test_invalid_rerun_is_refused(server: Server, body: dict[str, Any], status: int) -> None:
    response = _post(server, body)
    assert response.status_code == status
    check_error(response.json())
