"""A tenant's limits over HTTP: headers, 429, and retries by OpenAI's client."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import OpenAI, RateLimitError
from prometheus_client import REGISTRY
from sqlalchemy import text

from lowtide.http.operations import duration
from lowtide.tenants.keys import hash_key
from tests.conftest import PEPPER
from tests.http.forms import form, line, part, post, upload

if TYPE_CHECKING:
    from lowtide.core.ids import TenantId
    from tests.http.conftest import Api
    from tests.worlds import World

KEY = "lt_limited"
LIMIT, REMAINING, RESET = (
    f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset")
)


@pytest.fixture
def tenant(world: World) -> TenantId:
    """A separate tenant without limits."""
    tenant_id = world.tenant("limited")
    with world.database.engine("owner").begin() as connection:
        connection.execute(
            text("INSERT INTO api_keys (hash, tenant_id, name) VALUES (:hash, :tenant, 'k')"),
            {"hash": hash_key(KEY, PEPPER), "tenant": tenant_id},
        )
    return tenant_id


@pytest.fixture
def limited(api: Api, tenant: TenantId) -> Api:
    """The API as that tenant."""
    assert tenant
    return replace(api, key=KEY)


def _set_limits(world: World, tenant: TenantId, **limits: int) -> None:
    with world.database.engine("operator").begin() as connection:
        for name, value in limits.items():
            connection.execute(
                text(f"UPDATE tenants SET max_{name} = :value WHERE id = :id"),  # noqa: S608
                {"value": value, "id": tenant},
            )


def _rejections(reason: str) -> float:
    return REGISTRY.get_sample_value("api_rate_limited_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9994, "1m0s"),
        (60, "1m0s"),
        (90.5, "1m30.5s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (86400, "24h0m0s"),
    ],
)
def test_duration_has_openai_format(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_no_rate_limit_headers_without_limit(limited: Api) -> None:
    headers = limited("GET", "/v1/batches").headers
    assert [name for name, _ in headers if name.lower().startswith("x-ratelimit")] == []


def test_every_response_has_remaining_requests(
    world: World, tenant: TenantId, limited: Api
) -> None:
    _set_limits(world, tenant, requests_per_minute=4)
    responses = [
        limited("GET", "/v1/batches"),
        limited("GET", "/v1/batches/batch_x"),
        limited("POST", "/v1/batches", json={}),
        limited("GET", "/v1/models"),
    ]
    assert [response.status_code for response in responses] == [200, 404, 400, 200]
    assert [response.headers[LIMIT] for response in responses] == ["4"] * 4
    assert [response.headers[REMAINING] for response in responses] == ["3", "2", "1", "0"]
    assert all(re.fullmatch(r"(1m)?[0-9.]+s", response.headers[RESET]) for response in responses)
    assert "Retry-After" not in responses[-1].headers


def test_request_over_limit_returns_429(world: World, tenant: TenantId, limited: Api) -> None:
    _set_limits(world, tenant, requests_per_minute=2)
    before = _rejections("requests")
    responses = [limited("GET", "/v1/files") for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    rejected = responses[-1]
    error = rejected.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "2 requests per minute" in error["message"]
    assert 28 <= int(rejected.headers["Retry-After"]) <= 30
    assert (rejected.headers[LIMIT], rejected.headers[REMAINING]) == ("2", "0")
    assert rejected.headers["x-request-id"]
    assert _rejections("requests") == before + 1


def test_rejected_request_has_no_effect(world: World, tenant: TenantId, limited: Api) -> None:
    _set_limits(world, tenant, requests_per_minute=1)
    upload(limited)
    stored = limited.object_keys()
    body = form(part("purpose", b"batch"), part("file", line(), "again.jsonl"))
    assert post(limited, body).status_code == 429
    assert limited.object_keys() == stored
    assert len(world.rows("SELECT id FROM files")) == 1


def test_public_paths_are_not_counted(world: World, tenant: TenantId, limited: Api) -> None:
    _set_limits(world, tenant, requests_per_minute=1)
    for path in ("/health/live", "/health/ready", "/openapi.json"):
        response = limited("GET", path)
        assert (response.status_code, REMAINING in response.headers) == (200, False)
    assert limited("GET", "/v1/files").status_code == 200


def _openai_client(limited: Api, *, retries: int) -> OpenAI:
    """Return OpenAI's client, connected to the functions."""
    # It accepts this client, although its annotation is narrower.
    http: Any = httpx.Client(transport=_transport(limited))
    return OpenAI(base_url="http://test/v1", api_key=KEY, max_retries=retries, http_client=http)


def _transport(limited: Api) -> httpx.MockTransport:
    def handle(request: httpx.Request) -> httpx.Response:
        target = request.url.raw_path.decode()
        content = request.read()
        response = limited(
            request.method, target, data=content, content_type=request.headers.get("content-type")
        )
        return httpx.Response(
            response.status_code, headers=dict(response.headers), content=response.data
        )

    return httpx.MockTransport(handle)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch, world: World) -> list[float]:
    """Sleeps of OpenAI's client in seconds; the limits' clock advances as much."""
    durations: list[float] = []

    def sleep(seconds: float) -> None:
        durations.append(seconds)
        with world.database.engine("owner").begin() as connection:
            connection.execute(
                text("UPDATE request_rates SET at = at - make_interval(secs => :seconds)"),
                {"seconds": seconds},
            )

    monkeypatch.setattr("openai._base_client.time.sleep", sleep)
    return durations


def test_openai_client_waits_and_retries(
    world: World, tenant: TenantId, limited: Api, sleeps: list[float]
) -> None:
    _set_limits(world, tenant, requests_per_minute=2)
    client = _openai_client(limited, retries=1)
    for _ in range(4):
        assert client.batches.list().data == []
    assert len(sleeps) == 2
    assert all(28 <= seconds <= 31 for seconds in sleeps)


def test_openai_client_raises_rate_limit_error(
    world: World, tenant: TenantId, limited: Api
) -> None:
    _set_limits(world, tenant, requests_per_minute=1)
    client = _openai_client(limited, retries=0)
    client.batches.list()
    with pytest.raises(RateLimitError) as raised:
        client.batches.list()
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.response.headers[LIMIT] == "1"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"active_batches": 1}, "active_batches"), ({"queued_lines": 1}, "queued_lines")],
)
def test_batch_over_limit_returns_429(
    world: World, tenant: TenantId, limited: Api, limits: dict[str, int], reason: str
) -> None:
    _set_limits(world, tenant, **limits)
    body = {"input_file_id": upload(limited)["id"]}
    retry = {"Idempotency-Key": "once"}
    created = limited("POST", "/v1/batches", json=body, headers=retry)
    assert created.status_code == 200, created.text
    before = _rejections(reason)
    rejected = limited("POST", "/v1/batches", json=body)
    assert rejected.status_code == 429
    assert rejected.json["error"]["code"] == "rate_limit_exceeded"
    assert f"the limit is {next(iter(limits.values()))}" in rejected.json["error"]["message"]
    assert 1 <= int(rejected.headers["Retry-After"]) <= 60
    assert _rejections(reason) == before + 1
    repeated = limited("POST", "/v1/batches", json=body, headers=retry)
    assert (repeated.status_code, repeated.json["id"]) == (200, created.json["id"])


def test_file_over_queue_limit_returns_400(world: World, tenant: TenantId, limited: Api) -> None:
    _set_limits(world, tenant, queued_lines=1)
    body = {"input_file_id": upload(limited, line("a") + line("b"))["id"]}
    rejected = limited("POST", "/v1/batches", json=body)
    assert (rejected.status_code, rejected.json["error"]["code"]) == (400, "too_many_lines")
