"""Tokens of an identity provider, instead of API keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.scopes import Scope
from lowtide.identity.parsing import parse
from lowtide.identity.tokens import TokenVerifier
from lowtide.tenants.callers import Authenticator
from tests.conftest import PEPPER
from tests.http.forms import upload
from tests.identity.provider import Provider, providing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.http.conftest import Api
    from tests.worlds import World

FILE = """\
issuers:
  - issuer: {url}
    audience: lowtide
    roles: {{operator: [oncall]}}
"""


@pytest.fixture
def provider(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider whose tokens the API accepts."""
    with providing() as running:
        tokens = TokenVerifier(parse(FILE.format(url=running.url)))
        for function in api.clients:
            app = api.app(function)
            callers = Authenticator(app.database, pepper=PEPPER, anonymous=None, tokens=tokens)
            monkeypatch.setattr(app, "callers", callers)
        yield running


def batch(api: Api) -> Any:
    file = upload(api)["id"]
    body = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    return api("POST", "/v1/batches", json=body)


def test_token_works_like_a_key_of_its_tenant(api: Api, provider: Provider, world: World) -> None:
    of_key = upload(api)["id"]
    api.key = provider.token(scope=None, groups=["oncall"])
    created = batch(api)
    assert created.status_code == 200
    assert created.json["x_lowtide"]["user"] == "ada"
    assert of_key in [file["id"] for file in api("GET", "/v1/files").json["data"]]
    api("POST", f"/v1/batches/{created.json['id']}/cancel")
    host = provider.url.removeprefix("http://")
    with world.database.engine("operator").connect() as connection:
        actors = set(connection.execute(text("SELECT actor FROM audit_log")).scalars())
    assert f"ada ({host})" in actors


def test_token_may_do_what_its_scopes_say(api: Api, provider: Provider) -> None:
    api.key = provider.token(scope="files:read")
    assert api("GET", "/v1/files").status_code == 200
    refused = api("GET", "/v1/batches")
    assert refused.status_code == 403
    assert f"needs the scope {Scope.BATCHES_READ}, but your token has files:read" in refused.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tenant": "nobody"}, "The token's tenant 'nobody' does not exist"),
        ({"tenant": "a\x00b"}, "The token's tenant 'a\\x00b' does not exist"),
        ({"tenant": "default\n"}, "The token's tenant 'default\\n' does not exist"),
        ({"tenant": None}, "The token names no tenant, or several"),
        ({"tenant": ["default", "other"]}, "The token names no tenant, or several"),
        ({"exp": 1}, "The token is refused: it has expired."),
    ],
)
def test_refused_token_says_why(
    api: Api, provider: Provider, changes: dict[str, Any], message: str
) -> None:
    api.key = provider.token(**changes)
    answer = api("GET", "/v1/files")
    assert answer.status_code == 401
    assert answer.json["error"]["code"] == "invalid_token"
    assert answer.json["error"]["message"].startswith(message)
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_key_works_beside_tokens(api: Api, provider: Provider) -> None:
    provider.status = 503
    assert api("GET", "/v1/files").status_code == 200
    api.key = provider.token()
    assert api("GET", "/v1/files").status_code == 503


def test_name_of_a_user_is_one_line_of_text(api: Api, provider: Provider) -> None:
    api.key = provider.token(scope=None, groups=["oncall"], sub="a\r\nb\x00" + "c" * 100)
    assert batch(api).json["x_lowtide"]["user"] == "a b " + "c" * 60


def test_token_counts_against_the_limit_of_its_tenant(
    api: Api, provider: Provider, world: World
) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(
            text(
                "INSERT INTO tenants (id, name, max_requests_per_minute) "
                "VALUES (gen_random_uuid(), 'limited', 2)"
            )
        )
    api.key = provider.token(tenant="limited")
    assert [api("GET", "/v1/files").status_code for _ in range(3)] == [200, 200, 429]
