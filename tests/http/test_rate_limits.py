"""Limits of a tenant over HTTP: headers, 429, and OpenAI's client that waits by itself."""

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
from tests.http.forms import form, line, part, post, uploaded

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
    """A tenant of its own, without limits yet."""
    made = world.tenant("limited")
    with world.database.engine("owner").begin() as connection:
        connection.execute(
            text("INSERT INTO api_keys (hash, tenant_id, name) VALUES (:hash, :tenant, 'k')"),
            {"hash": hash_key(KEY, PEPPER), "tenant": made},
        )
    return made


@pytest.fixture
def limited(api: Api, tenant: TenantId) -> Api:
    """The API as that tenant."""
    assert tenant
    return replace(api, key=KEY)


def _limit(world: World, tenant: TenantId, **limits: int) -> None:
    with world.database.engine("operator").begin() as connection:
        for name, value in limits.items():
            connection.execute(
                text(f"UPDATE tenants SET max_{name} = :value WHERE id = :id"),  # noqa: S608
                {"value": value, "id": tenant},
            )


def _refused(reason: str) -> float:
    return REGISTRY.get_sample_value("api_rate_limited_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("seconds", "text_"),
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
def test_durations_are_written_as_openai_does(seconds: float, text_: str) -> None:
    assert duration(seconds) == text_


def test_without_a_limit_no_header_tells_of_one(limited: Api) -> None:
    headers = limited("GET", "/v1/batches").headers
    assert [name for name, _ in headers if name.lower().startswith("x-ratelimit")] == []


def test_every_answer_tells_what_is_left(world: World, tenant: TenantId, limited: Api) -> None:
    _limit(world, tenant, requests_per_minute=4)
    answers = [
        limited("GET", "/v1/batches"),
        limited("GET", "/v1/batches/batch_x"),
        limited("POST", "/v1/batches", json={}),
        limited("GET", "/v1/models"),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 400, 200]
    assert [answer.headers[LIMIT] for answer in answers] == ["4"] * 4
    assert [answer.headers[REMAINING] for answer in answers] == ["3", "2", "1", "0"]
    assert all(re.fullmatch(r"(1m)?[0-9.]+s", answer.headers[RESET]) for answer in answers)
    assert "Retry-After" not in answers[-1].headers


def test_one_request_too_many(world: World, tenant: TenantId, limited: Api) -> None:
    _limit(world, tenant, requests_per_minute=2)
    before = _refused("requests")
    answers = [limited("GET", "/v1/files") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    refused = answers[-1]
    error = refused.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert "2 requests per minute" in error["message"]
    assert 28 <= int(refused.headers["Retry-After"]) <= 30
    assert (refused.headers[LIMIT], refused.headers[REMAINING]) == ("2", "0")
    assert refused.headers["x-request-id"]
    assert _refused("requests") == before + 1


def test_nothing_of_a_refused_request_happens(world: World, tenant: TenantId, limited: Api) -> None:
    _limit(world, tenant, requests_per_minute=1)
    uploaded(limited)
    stored = limited.stored()
    sent = form(part("purpose", b"batch"), part("file", line(), "again.jsonl"))
    assert post(limited, sent).status_code == 429
    assert limited.stored() == stored
    assert len(world.rows("SELECT id FROM files")) == 1


def test_public_paths_are_not_counted(world: World, tenant: TenantId, limited: Api) -> None:
    _limit(world, tenant, requests_per_minute=1)
    for path in ("/health/live", "/health/ready", "/openapi.json"):
        answer = limited("GET", path)
        assert (answer.status_code, REMAINING in answer.headers) == (200, False)
    assert limited("GET", "/v1/files").status_code == 200


def _officially(limited: Api, *, retries: int) -> OpenAI:
    """Return OpenAI's client in front of the functions."""
    # It takes this client too, whatever its types say.
    http: Any = httpx.Client(transport=_transport(limited))
    return OpenAI(base_url="http://test/v1", api_key=KEY, max_retries=retries, http_client=http)


def _transport(limited: Api) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        target = request.url.raw_path.decode()
        content = request.read()
        found = limited(
            request.method, target, data=content, content_type=request.headers.get("content-type")
        )
        return httpx.Response(found.status_code, headers=dict(found.headers), content=found.data)

    return httpx.MockTransport(answer)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch, world: World) -> list[float]:
    """What OpenAI's client sleeps; that time passes for the limits, too."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        with world.database.engine("owner").begin() as connection:
            connection.execute(
                text("UPDATE request_rates SET at = at - make_interval(secs => :seconds)"),
                {"seconds": seconds},
            )

    monkeypatch.setattr("openai._base_client.time.sleep", sleep)
    return slept


def test_openais_client_waits_and_asks_again(
    world: World, tenant: TenantId, limited: Api, naps: list[float]
) -> None:
    _limit(world, tenant, requests_per_minute=2)
    client = _officially(limited, retries=1)
    for _ in range(4):
        assert client.batches.list().data == []
    assert len(naps) == 2
    assert all(28 <= nap <= 31 for nap in naps)


def test_openais_client_raises_its_own_error(world: World, tenant: TenantId, limited: Api) -> None:
    _limit(world, tenant, requests_per_minute=1)
    client = _officially(limited, retries=0)
    client.batches.list()
    with pytest.raises(RateLimitError) as refused:
        client.batches.list()
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.response.headers[LIMIT] == "1"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"active_batches": 1}, "active_batches"), ({"queued_lines": 1}, "queued_lines")],
)
def test_no_room_for_another_batch(
    world: World, tenant: TenantId, limited: Api, limits: dict[str, int], reason: str
) -> None:
    _limit(world, tenant, **limits)
    body = {"input_file_id": uploaded(limited)["id"]}
    retry = {"Idempotency-Key": "once"}
    made = limited("POST", "/v1/batches", json=body, headers=retry)
    assert made.status_code == 200, made.text
    before = _refused(reason)
    refused = limited("POST", "/v1/batches", json=body)
    assert refused.status_code == 429
    assert refused.json["error"]["code"] == "rate_limit_exceeded"
    assert f"the limit is {next(iter(limits.values()))}" in refused.json["error"]["message"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert _refused(reason) == before + 1
    again = limited("POST", "/v1/batches", json=body, headers=retry)
    assert (again.status_code, again.json["id"]) == (200, made.json["id"])


def test_a_file_that_never_fits_is_a_bad_request(
    world: World, tenant: TenantId, limited: Api
) -> None:
    _limit(world, tenant, queued_lines=1)
    body = {"input_file_id": uploaded(limited, line("a") + line("b"))["id"]}
    refused = limited("POST", "/v1/batches", json=body)
    assert (refused.status_code, refused.json["error"]["code"]) == (400, "too_many_lines")
