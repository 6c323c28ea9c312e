"""Errors, request ids, authentication, and isolation of tenants."""

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import openai
import pytest

from lowtide.local import files
from lowtide.tenants.keys import hash_key, new_key
from tests.conformance.features import Area, proves
from tests.conformance.lines import requests
from tests.conformance.server import Server
from tests.conformance.shapes import check_error, check_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.server import Official, Own

FILE = "/v1/files/file-" + "0" * 32
BATCH = "/v1/batches/batch_" + "0" * 32
UPLOAD = "/v1/uploads/upload_" + "0" * 32
CALLS = [
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", FILE),
    ("GET", f"{FILE}/content"),
    ("DELETE", FILE),
    ("POST", "/v1/uploads"),
    ("POST", f"{UPLOAD}/parts"),
    ("POST", f"{UPLOAD}/complete"),
    ("POST", f"{UPLOAD}/cancel"),
    ("GET", "/v1/batches"),
    ("POST", "/v1/batches"),
    ("GET", BATCH),
    ("POST", f"{BATCH}/cancel"),
    ("GET", f"{BATCH}/requests"),
    ("GET", f"{BATCH}/results"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/any"),
    ("GET", "/v1/usage"),
]
BY_CALL = pytest.mark.parametrize(
    ("method", "path"), CALLS, ids=[f"{method} {path}" for method, path in CALLS]
)
WRONG_METHODS = [
    ("DELETE", "/v1/files", "GET, HEAD, POST"),
    ("POST", BATCH, "GET, HEAD"),
    ("GET", f"{BATCH}/cancel", "POST"),
    ("PUT", "/v1/files", "GET, HEAD, POST"),
    ("POST", FILE, "DELETE, GET, HEAD"),
    ("DELETE", "/v1/batches", "GET, HEAD, POST"),
    ("PATCH", BATCH, "GET, HEAD"),
    ("GET", "/v1/uploads", "POST"),
    ("GET", f"{UPLOAD}/cancel", "POST"),
    ("POST", "/v1/models", "GET, HEAD"),
]


@proves(Area.ERRORS, "Errors: {error: {message, type, param, code}}, and the client's exception")
@pytest.mark.parametrize(
    ("status", "kind", "exception"),
    [
        (400, "invalid_request_error", openai.BadRequestError),
        (401, "authentication_error", openai.AuthenticationError),
        (404, "invalid_request_error", openai.NotFoundError),
        (409, "invalid_request_error", openai.ConflictError),
    ],
)
def test_error_raises_client_exception(
    official: Official,
    server: Server,
    status: int,
    kind: str,
    exception: type[openai.APIStatusError],
) -> None:
    def ask(client: Any) -> Any:
        if status == 400:
            return client.files.create(file=b"x", purpose="vision")
        if status == 401:
            return client.with_options(api_key="lt_wrong").batches.retrieve("batch_" + "0" * 32)
        if status == 404:
            return client.batches.retrieve("batch_" + "0" * 32)
        return client.batches.cancel(ended["id"])

    ended = server.finish(server.create(b"not a request\n")) if status == 409 else {}
    with pytest.raises(exception) as refused:
        official(ask)
    error = refused.value
    assert (error.status_code, error.type) == (status, kind)
    assert error.request_id is not None
    assert error.request_id == error.response.headers["x-request-id"]
    check_error(error.response.json())


@proves(Area.ERRORS, "Every answer has its own `x-request-id`")
@BY_CALL
def test_every_response_has_its_own_request_id(server: Server, method: str, path: str) -> None:
    ids = {server.http.request(method, path).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(ids)


@proves(Area.ERRORS, "Every answer has its own `x-request-id`")
@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/openapi.json", "/docs", "/health/live", "/health/ready"]
)
def test_public_page_has_request_id(server: Server, path: str) -> None:
    assert server.anonymous.get(path).headers["x-request-id"]


@proves(Area.ERRORS, "Without a key, or with a wrong one, nothing is answered: 401")
@BY_CALL
@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer lt_wrong", "Bearer", "Basic bHQ6bHQ="],
    ids=["none", "wrong", "empty", "basic"],
)
def test_call_without_valid_key_returns_401(
    server: Server, method: str, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = server.anonymous.request(method, path, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    error = check_error(response.json())
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


@proves(Area.ERRORS, "The body of a request that is refused is not waited for")
def test_refused_call_is_answered_before_its_body(server: Server) -> None:
    url = httpx.URL(server.base_url)
    head = f"POST /v1/files HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(head.encode())
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 401
        check_error(json.loads(answer.read()))


@proves(
    Area.ERRORS, "A path that is not there is 404, a method that it does not take 405 with `Allow`"
)
@pytest.mark.parametrize(
    "path",
    ["/v1/nothing", "/v1/batches/a/b/c", "/v1//files", "/v1/files/a%0Ab/c"],
)
def test_unknown_path_returns_404(server: Server, path: str) -> None:
    response = server.http.get(path)
    assert response.status_code == 404
    assert check_error(response.json())["code"] == "unknown_url"
    assert response.headers["x-request-id"]


@proves(
    Area.ERRORS, "A path that is not there is 404, a method that it does not take 405 with `Allow`"
)
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    WRONG_METHODS,
    ids=[f"{method} {path}" for method, path, _ in WRONG_METHODS],
)
def test_wrong_method_returns_405(server: Server, method: str, path: str, allowed: str) -> None:
    response = server.http.request(method, path)
    assert response.status_code == 405
    assert check_error(response.json())["code"] == "method_not_allowed"
    assert response.headers["Allow"] == allowed
    assert response.headers["x-request-id"]


@proves(Area.ERRORS, "An unknown query parameter is 400 with its name in `param`")
@BY_CALL
def test_unknown_query_parameter_is_refused(server: Server, method: str, path: str) -> None:
    response = server.http.request(method, path, params={"no-such-parameter": "1"})
    assert response.status_code == 400
    error = check_error(response.json())
    assert (error["param"], error["code"]) == ("no-such-parameter", "unknown_parameter")


@proves(
    Area.ERRORS, "`AzureOpenAI` works: its query parameter `api-version` is accepted and ignored"
)
def test_azure_client_lists_and_reads(server: Server) -> None:
    created = server.create(requests(1))
    with openai.AzureOpenAI(
        base_url=f"{server.base_url}/v1",
        azure_ad_token=server.api_key,
        api_version="2024-10-21",
    ) as client:
        assert client.batches.retrieve(created["id"]).id == created["id"]
        assert created["id"] in [batch.id for batch in client.batches.list(limit=1).data]
        assert client.files.retrieve(created["input_file_id"]).purpose == "batch"


@proves(Area.ERRORS, "`x-request-id` on what no function is asked")
def test_unrouted_path_has_request_id(server: Server) -> None:
    response = server.http.get("/nothing")
    assert response.status_code == 404
    assert response.headers["x-request-id"]


@proves(Area.ERRORS, "A last slash changes nothing, on POST as on GET")
def test_trailing_slash_is_ignored(server: Server) -> None:
    uploaded = server.http.post("/v1/files/", files={"file": requests(1)})
    assert uploaded.status_code == 200, uploaded.text
    created = server.http.post("/v1/batches/", json={"input_file_id": uploaded.json()["id"]})
    assert created.status_code == 200, created.text
    cancelled = server.http.post(f"/v1/batches/{created.json()['id']}/cancel/")
    assert cancelled.status_code in {200, 409}, cancelled.text
    assert server.http.delete(f"/v1/files/{uploaded.json()['id']}/").status_code in {200, 409}
    assert server.http.get("/v1/batches/").status_code == 200


@pytest.fixture(scope="module")
def other_tenant(server: Server, own: Own) -> Iterator[Server]:
    """The same server, as another tenant."""
    stored = files.read(own.stack.data_dir)
    assert stored is not None
    key, tenant = new_key(), uuid4()
    for each in own.stack.installations:
        with each.database.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO tenants (id, name) VALUES (%s, 'stranger')", (str(tenant),)
            )
            connection.exec_driver_sql(
                "INSERT INTO api_keys (hash, tenant_id, name) VALUES (%s, %s, 'stranger')",
                (hash_key(key, stored.api_key_pepper), str(tenant)),
            )
    client = Server(server.base_url, key)
    yield client
    client.close()


@proves(Area.ERRORS, "What belongs to another tenant is 404, and in no list")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files/{input_file_id}"),
        ("GET", "/v1/files/{input_file_id}/content"),
        ("GET", "/v1/files/{output_file_id}/content"),
        ("DELETE", "/v1/files/{input_file_id}"),
        ("GET", "/v1/batches/{id}"),
        ("POST", "/v1/batches/{id}/cancel"),
        ("GET", "/v1/batches/{id}/requests"),
        ("GET", "/v1/batches/{id}/results"),
    ],
)
def test_objects_of_another_tenant_return_404(
    server: Server, other_tenant: Server, method: str, path: str
) -> None:
    mine = server.finish(server.create(requests(1)))
    response = other_tenant.http.request(method, path.format(**mine))
    assert response.status_code == 404
    check_error(response.json())


@proves(Area.ERRORS, "What belongs to another tenant is 404, and in no list")
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_lists_exclude_objects_of_another_tenant(
    server: Server, other_tenant: Server, path: str
) -> None:
    server.create(requests(1))
    assert check_page(other_tenant.json(path)) == []


@proves(Area.ERRORS, "What belongs to another tenant is 404, and in no list")
def test_file_of_another_tenant_is_refused_as_input(server: Server, other_tenant: Server) -> None:
    mine = server.upload(requests(1))
    response = other_tenant.http.post("/v1/batches", json={"input_file_id": mine["id"]})
    assert response.status_code == 404
    assert check_error(response.json())["param"] == "input_file_id"
