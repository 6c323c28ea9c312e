"""Behaviour of every HTTP function: errors in OpenAI's shape, request ids, unread bodies."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response
from flask import request as current
from prometheus_client import REGISTRY

from lowtide.core import errors
from lowtide.database import schema
from lowtide.database.schema import newest_revision
from lowtide.http.application import Application
from lowtide.http.operations import Route
from lowtide.telemetry.tracing import UNTRACED, log_fields
from tests.http.forms import CONTENT_TYPE

if TYPE_CHECKING:
    import logging

    from tests.http.conftest import Api

ID = "0" * 32


def _assert_error(response: Any, status: int, code: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.mimetype == "application/json"
    assert set(response.json) == {"error"}
    error = response.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert code is None or error["code"] == code
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1//files", 404, "unknown_url"),
        ("GET", "/v1/files/x", 404, "not_found"),
        ("GET", f"/v1/files/file-{ID}", 404, "not_found"),
        ("GET", f"/v1/files/file-{ID}/content", 404, "not_found"),
        ("DELETE", f"/v1/files/file-{ID}", 404, "not_found"),
        ("DELETE", "/v1/files/..%2f..%2fetc", 404, None),
        ("GET", f"/v1/batches/batch_{ID}", 404, "not_found"),
        ("GET", f"/v1/batches/file-{ID}", 404, "not_found"),
        ("GET", "/v1/batches/%00", 404, None),
        ("GET", "/v1/batches/%ff%fe", 404, None),
        ("POST", f"/v1/batches/batch_{ID}/cancel", 404, "not_found"),
        ("PUT", "/v1/files", 405, "method_not_allowed"),
        ("DELETE", "/v1/batches", 405, "method_not_allowed"),
        ("PATCH", f"/v1/batches/batch_{ID}/cancel", 405, "method_not_allowed"),
        ("POST", "/v1/batches", 415, "unsupported_media_type"),
        ("POST", "/v1/files", 415, "unsupported_media_type"),
        ("GET", "/v1/batches?limit=0", 400, None),
        ("GET", "/v1/batches?limit=101", 400, None),
        ("GET", "/v1/batches?after=x", 404, None),
        ("GET", "/v1/files?order=up", 400, None),
    ],
)
def test_errors_have_openai_shape(
    api: Api, method: str, path: str, status: int, code: str | None
) -> None:
    _assert_error(api(method, path), status, code)


@pytest.mark.parametrize(
    ("method", "path", "name", "message"),
    [
        pytest.param(
            "GET", "/v1/batches?limit=1&colour=x", "colour",
            "Unknown query parameter 'colour'. This path accepts after, limit, status, user.",
            id="unknown",
        ),
        pytest.param(
            "GET", "/v1/files?limt=1", "limt",
            "Unknown query parameter 'limt'. Did you mean 'limit'? "
            "This path accepts after, limit, order, purpose.", id="near match",
        ),
        pytest.param(
            "GET", f"/v1/batches/batch_{ID}?a=1", "a",
            "Unknown query parameter 'a'. This path accepts none.", id="before the id",
        ),
        pytest.param(
            "GET", f"/v1/files/file-{ID}/content?Range=bytes%3D0-1", "Range",
            "Unknown query parameter 'Range'. This path accepts presign.", id="name of a header",
        ),
        pytest.param(
            "POST", "/v1/files?purpose=batch", "purpose",
            "Unknown query parameter 'purpose'. This path accepts none.", id="field of a form",
        ),
        pytest.param(
            "POST", f"/v1/batches/batch_{ID}/cancel?=", "",
            "Unknown query parameter ''. This path accepts none.", id="empty",
        ),
        pytest.param(
            "GET", f"/v1/models?{'x' * 200}", "x" * 100,
            f"Unknown query parameter '{'x' * 100}'. This path accepts none.", id="long",
        ),
    ],
)  # fmt: skip
def test_unknown_query_parameter_is_refused_by_name(
    api: Api, method: str, path: str, name: str, message: str
) -> None:
    response = api(method, path)
    _assert_error(response, 400, "unknown_parameter")
    error = response.json["error"]
    assert (error["param"], error["message"]) == (name, message)


def test_unknown_query_parameter_needs_a_key_first(api: Api) -> None:
    api.key = None
    _assert_error(api("GET", "/v1/batches?stauts=x"), 401)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json", "/docs"])
def test_public_path_ignores_query_parameters(api: Api, path: str) -> None:
    assert api("GET", f"{path}?stauts=x").status_code == 200


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files", "/v1/models", "/v1/dead_letters"])
def test_api_version_is_ignored(api: Api, path: str) -> None:
    assert api("GET", f"{path}?api-version=2024-10-21").status_code == 200


@pytest.mark.parametrize("key", [None, "", "lt_wrong", "x" * 5000, "\u00fc"], ids=ascii)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", f"/v1/files/file-{ID}/content"])
def test_missing_or_invalid_key_returns_401(api: Api, key: str | None, path: str) -> None:
    api.key = key
    response = api("GET", path)
    _assert_error(response, 401, "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_health_needs_no_key(api: Api, path: str) -> None:
    api.key = None
    response = api("GET", path)
    assert (response.status_code, response.json) == (200, {"status": "ok"})
    assert response.headers["x-request-id"].startswith("req_")


def test_function_is_not_ready_before_migration(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = newest_revision()
    monkeypatch.setattr(schema, "_revisions", lambda: {revision: None, "9999": revision})
    responses = [api("GET", path) for path in ("/health/ready", "/health/live")]
    assert [response.status_code for response in responses] == [503, 200]
    message = responses[0].json["error"]["message"]
    assert f"has schema {revision}, this version needs 9999" in message


def test_request_ids_are_unique(api: Api) -> None:
    assert len({api("GET", "/v1/files").headers["x-request-id"] for _ in range(5)}) == 5


def _response_to(error: Exception) -> Any:
    def handler(_: object) -> Response:
        raise error

    routes = [_route("GET", "/x", handler)]
    parts: Any = SimpleNamespace(tracer=UNTRACED)
    application = Application(parts, routes, all_routes=routes)
    app = Flask("test")
    app.add_url_rule("/x", "x", lambda: application(current))
    return app.test_client().get("/x")


def _route(method: str, path: str, handler: Any) -> Route:
    from lowtide import routes

    known = next(route for route in routes.READ if route.scope is None)
    return Route(
        **{name: getattr(known, name) for name in known.__slots__}
        | {"method": method, "path": path, "handler": handler}
    )


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        (errors.InvalidRequest, {}),
        (errors.Unauthenticated, {"WWW-Authenticate": "Bearer"}),
        (errors.NotFound, {}),
        (errors.MethodNotAllowed, {}),
        (errors.Conflict, {"x-should-retry": "false"}),
        (errors.PayloadTooLarge, {}),
        (errors.UnsupportedMediaType, {}),
        (errors.TooManyRequests, {"Retry-After": "1"}),
        (errors.Unavailable, {"Retry-After": "1"}),
    ],
)
def test_error_class_determines_response(
    kind: type[errors.LowtideError], headers: dict[str, str]
) -> None:
    response = _response_to(kind("What to do.", param="p", code="c"))
    _assert_error(response, kind.status, "c")
    assert response.json["error"] == {
        "message": "What to do.",
        "type": kind.type,
        "param": "p",
        "code": "c",
    }
    assert headers.items() <= dict(response.headers).items()


def test_unexpected_exception_returns_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    fields: list[dict[str, object]] = []

    def record_fields(_: logging.LogRecord) -> bool:
        fields.append(log_fields())
        return True

    caplog.handler.addFilter(record_fields)
    response = _response_to(RuntimeError("password=hunter2"))
    _assert_error(response, 500)
    assert "hunter2" not in response.text
    assert response.json["error"]["type"] == "server_error"
    assert caplog.records[0].message == "request.failed"
    assert fields[0]["request_id"] == response.headers["x-request-id"]


def test_cause_of_unavailable_is_logged_but_not_returned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = errors.Unavailable("The store does not answer.")
    error.__cause__ = OSError("refused by 10.0.0.7")
    response = _response_to(error)
    assert response.status_code == 503
    assert response.json["error"]["message"] == "The store does not answer."
    (record,) = caplog.records
    assert record.getMessage() == "request.unavailable"
    assert vars(record)["reason"] == "The store does not answer. OSError('refused by 10.0.0.7')"


def test_database_outage_returns_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    class UnavailableCallers:
        def caller(self, _: str | None) -> None:
            raise errors.Unavailable("The database is not responding: try again.")

    monkeypatch.setattr(api.app(), "callers", UnavailableCallers())
    response = api("GET", "/v1/batches")
    _assert_error(response, 503, "unavailable")
    assert response.headers["Retry-After"] == "1"


class _Endless(io.RawIOBase):
    """A body of zeros that counts its unread bytes."""

    def __init__(self, size: int) -> None:
        self.unread = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.unread)
        self.unread -= count
        return count


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("GET", "/v1/files", id="success"),
        pytest.param("GET", "/health/live", id="public"),
        pytest.param("GET", "/v1/nothing", id="not found"),
        pytest.param("DELETE", f"/v1/files/file-{ID}", id="error"),
        pytest.param("POST", "/v1/files", id="wrong type"),
    ],
)
def test_unneeded_body_is_not_read(api: Api, method: str, path: str) -> None:
    body = _Endless(50_000_000)
    api(
        method, path, content_type="text/plain",
        environ_overrides={"wsgi.input": body, "CONTENT_LENGTH": "50000000"},
    )  # fmt: skip
    assert body.unread == 50_000_000


def test_oversized_body_is_not_read(api: Api) -> None:
    body = _Endless(1 << 40)
    response = api(
        "POST", "/v1/files", content_type=CONTENT_TYPE,
        environ_overrides={"wsgi.input": body, "CONTENT_LENGTH": str(1 << 40)},
    )  # fmt: skip
    _assert_error(response, 413)
    assert body.unread == 1 << 40


def _series() -> set[str]:
    return {
        str(sample.labels)
        for family in REGISTRY.collect()
        if family.name == "api_requests"
        for sample in family.samples
    }


def test_unknown_methods_and_paths_add_no_metric_series(api: Api) -> None:
    def send_unknown(number: int) -> None:
        assert api(f"METHOD{number}", "/v1/files").status_code == 405
        api("GET", f"/v1/files/{number}")
        api("GET", f"/v1/{number}/x")

    send_unknown(0)
    before = _series()
    for number in range(1, 5):
        send_unknown(number)
    assert _series() == before
