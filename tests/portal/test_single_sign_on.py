"""Sign-in to the portal at a real identity provider."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import text
from starlette.requests import Request

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.scopes import Role
from lowtide.identity.model import Issuer, PortalClient, RoleRule
from lowtide.local.ports import free_port
from lowtide.tenants.sign_in import TokenSignIn
from portal import single_sign_on
from portal.single_sign_on import SingleSignOn
from tests.browsing import Visit, new_visit
from tests.e2e.waiting import until
from tests.identity.provider import providing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.conftest import Database
    from tests.identity.provider import Provider
    from tests.portal.conftest import Portal, StubApi

FILE = """\
issuers:
  - issuer: {url}
    audience: lowtide
    roles: {{viewer: [readers], operator: [oncall], admin: [bosses], every_tenant: [platform]}}
portal: {{issuer: "{url}", client_id: lowtide-portal}}
"""
USERS: dict[str, dict[str, object]] = {
    "vera": {"groups": ["readers", "platform"]},
    "otto": {"groups": ["oncall", "platform"]},
    "bea": {"groups": ["bosses", "platform"]},
    "tess": {"groups": ["oncall"], "tenant": "default"},
    "nora": {"groups": ["guests", "platform"]},
    "theo": {"groups": ["oncall"], "tenant": "unknown"},
}
PROVIDER = re.compile("^Sign in at localhost")


@contextmanager
def provider(token_seconds: int) -> Iterator[str]:
    """Run a provider whose users are USERS; yield its URL."""
    port = free_port()
    users = [f"--user-claims={json.dumps({'sub': sub, **USERS[sub]})}" for sub in USERS]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "oidc_provider_mock", f"--port={port}"),
            *(f"--token-max-age={token_seconds}", *users),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://localhost:{port}"
    try:
        until(lambda: _answers(url), "the provider answers")
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """The URL of a provider."""
    with provider(3600) as url:
        yield url


@pytest.fixture(scope="module")
def signing_portal(
    shared: Database,
    api: StubApi,
    start_portal: Callable[..., Portal],
    issuer: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Portal:
    """A portal that signs people in at the provider, and has no password."""
    return start_portal(
        shared.url("operator"), api.url, **_settings(issuer, tmp_path_factory.mktemp("identity"))
    )


def _settings(issuer: str, folder: Path) -> dict[str, str]:
    file = folder / "identity.yaml"
    file.write_text(FILE.format(url=issuer))
    return {
        "LOWTIDE_IDENTITY": str(file),
        "LOWTIDE_OIDC_CLIENT_SECRET": "s3cret",
        "LOWTIDE_PORTAL_PASSWORD_HASH": "",
        "LOWTIDE_PORTAL_VIEWER_PASSWORD_HASH": "",
        "LOWTIDE_PORTAL_TENANT_DATABASE_URL": "",
    }


def _start(client: httpx.Client, target: str = "/batches") -> str:
    """Return the address at the provider."""
    return client.get("/sign-in/start", params={"next": target}).headers["location"]


def _approve(address: str, user: str) -> str:
    """Sign in at the provider; return the address to which it sends the browser back."""
    return httpx.post(address, data={"sub": user}, trust_env=False).headers["location"]


def _sign_in(portal: Portal, user: str) -> httpx.Response:
    """Return the portal's answer once a user is back."""
    with portal.client(None) as client:
        return client.get(_approve(_start(client), user))


def test_request_has_pkce_state_and_nonce(signing_portal: Portal) -> None:
    with signing_portal.client(None) as client:
        first, second = (parse_qs(urlsplit(_start(client)).query) for _ in range(2))
    assert first["client_id"] == ["lowtide-portal"]
    assert first["code_challenge_method"] == ["S256"]
    assert first["redirect_uri"] == [f"{signing_portal.url}/sign-in/callback"]
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name][0]) >= 20
        assert first[name] != second[name]


def test_user_returns_to_the_page_that_was_asked_for(signing_portal: Portal) -> None:
    answer = _sign_in(signing_portal, "otto")
    assert (answer.status_code, answer.headers["location"]) == (303, "/batches")


@pytest.mark.parametrize("user", ["nora", "theo"])
def test_account_without_role_or_tenant_is_refused(signing_portal: Portal, user: str) -> None:
    with signing_portal.client(None) as client:
        answer = client.get(_approve(_start(client), user))
        assert answer.headers["location"] == "/sign-in?problem=account&next=%2Fbatches"
        assert (
            "Your account has no role or no tenant here"
            in client.get(answer.headers["location"]).text
        )
        assert client.get("/batches").status_code == 303


@pytest.mark.parametrize("attack", ["state", "code", "no session", "used again", "denied"])
def test_forged_return_opens_no_session(signing_portal: Portal, attack: str) -> None:
    with signing_portal.client(None) as client:
        back = _approve(_start(client), "bea")
        if attack == "no session":
            client.cookies.clear()
        elif attack == "used again":
            assert client.get(back).headers["location"] == "/batches"
            client.cookies.clear()
        elif attack == "denied":
            address = _start(client)
            back = httpx.post(address, data={"action": "deny"}, trust_env=False).headers["location"]
        else:
            back = re.sub(rf"{attack}=[^&]+", f"{attack}=forged", back)
        assert client.get(back).headers["location"].startswith("/sign-in?problem=provider")
        assert client.get("/batches").headers["location"].startswith("/sign-in")


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example"])
def test_no_sign_in_leads_to_another_site(signing_portal: Portal, target: str) -> None:
    with signing_portal.client(None) as client:
        back = _approve(_start(client, target), "otto")
        assert client.get(back).headers["location"] == "/"


def test_password_form_is_away_without_passwords(signing_portal: Portal) -> None:
    with signing_portal.client(None) as client:
        page = client.get("/sign-in").text
    assert "Sign in at localhost" in page
    assert "Password or API key" not in page


def test_user_of_one_tenant_sees_that_one(signing_portal: Portal) -> None:
    answer = _sign_in(signing_portal, "tess")
    with signing_portal.client(None) as client:
        client.cookies.update(answer.cookies)
        assert client.get("/tenants").status_code == 403


@pytest.fixture
def person(browser: Browser, signing_portal: Portal) -> Iterator[Callable[[str], Visit]]:
    """Sign a user in, in a browser of its own."""
    visits: list[Visit] = []

    def sign_in(user: str, portal: Portal = signing_portal) -> Visit:
        visited = new_visit(browser, portal.url)
        visits.append(visited)
        # The provider's pages have a style sheet from elsewhere.
        visited.context.route(re.compile("jsdelivr"), lambda route: route.abort())
        page = visited.page
        page.goto(f"{portal.url}/queues")
        page.get_by_role("link", name=PROVIDER).click()
        page.get_by_placeholder("sub").fill(user)
        page.get_by_role("button", name="Authorize", exact=True).click()
        page.get_by_role("heading", name="Queues", level=1).wait_for()
        return visited

    yield sign_in
    for visited in visits:
        visited.context.close()


@pytest.mark.slow
def test_people_do_what_their_role_allows(
    shared: Database, signing_portal: Portal, person: Callable[[str], Visit]
) -> None:
    viewer = person("vera").page
    assert viewer.get_by_role("button", name=re.compile("^Pause")).count() == 0
    viewer.goto(f"{signing_portal.url}/keys")
    viewer.get_by_role("heading", name="API keys").wait_for()
    assert viewer.get_by_role("button", name="New key…").count() == 0

    operator = person("otto").page
    operator.get_by_role("button", name=re.compile("^Pause")).first.click()
    operator.get_by_role("dialog").get_by_role("button", name=re.compile("^Pause")).click()
    operator.get_by_role("button", name=re.compile("^Resume")).first.wait_for()
    operator.goto(f"{signing_portal.url}/keys")
    operator.get_by_role("heading", name="API keys").wait_for()
    assert operator.get_by_role("button", name="New key…").count() == 0

    admin = person("bea").page
    admin.goto(f"{signing_portal.url}/keys")
    admin.get_by_role("button", name="New key…").wait_for()
    with shared.engine("operator").connect() as connection:
        actors = connection.execute(text("SELECT actor FROM audit_log")).scalars().all()
    assert any(re.fullmatch(r"otto \(localhost:\d+\)", actor) for actor in actors)


@pytest.mark.slow
def test_sign_out_ends_the_session_here_and_there(
    signing_portal: Portal, issuer: str, person: Callable[[str], Visit]
) -> None:
    visited = person("vera")
    page = visited.page
    page.get_by_role("button", name=re.compile("^Sign out vera")).click()
    page.wait_for_url(f"{issuer}/oauth2/end_session*")
    page.get_by_role("button", name="End session").click()
    page.wait_for_url(f"{signing_portal.url}/sign-in*")
    page.goto(f"{signing_portal.url}/queues")
    page.get_by_role("link", name=PROVIDER).wait_for()


@pytest.mark.slow
def test_session_ends_with_the_token(
    shared: Database,
    api: StubApi,
    start_portal: Callable[..., Portal],
    person: Callable[..., Visit],
    tmp_path: Path,
) -> None:
    with provider(15) as url:
        settings = _settings(url, tmp_path)
        portal = start_portal(shared.url("operator"), api.url, **settings)
        page = person("otto", portal).page
        # The open page notices by itself.
        page.wait_for_url(f"{portal.url}/sign-in*")
        page.goto(f"{portal.url}/queues")
        page.get_by_role("link", name=PROVIDER).wait_for()


class SigningIn:
    """Sign-in with the ID token that a test makes."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        issuer = Issuer(
            provider.url,
            ("lowtide",),
            roles=RoleRule(members={Role.VIEWER: frozenset({"readers"})}),
        )
        client = PortalClient(issuer, "lowtide-portal", ("openid",))
        self._single_sign_on = SingleSignOn(TokenSignIn(client), "", session_seconds=3600)

    def finish(self, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[str, dict[str, Any]]:
        """Return where a person with this token is sent, and the session."""
        claims = {"aud": "lowtide-portal", "groups": ["readers"]} | changes

        async def answer(_: Request) -> dict[str, str]:
            return {"id_token": self.provider.token(**claims)}

        async def at_once(call: Callable[[], Any]) -> Any:
            return call()

        monkeypatch.setattr(self._single_sign_on._provider, "authorize_access_token", answer)
        monkeypatch.setattr(single_sign_on, "in_thread", at_once)
        monkeypatch.setattr(single_sign_on, "run_blocking", at_once)
        request = Request({"type": "http", "session": {"target": "/batches?status=failed"}})
        tenants = {"default": DEFAULT_TENANT}
        response = asyncio.run(self._single_sign_on.finish(request, lambda: tenants))
        return response.headers["location"], request.session


@pytest.fixture
def signing() -> Iterator[SigningIn]:
    """A sign-in of which the library's part is left out."""
    with providing() as running:
        yield SigningIn(running)


def test_end_of_a_token_may_be_a_text(signing: SigningIn, monkeypatch: pytest.MonkeyPatch) -> None:
    end = str(int(time.time()) + 300)
    location, session = signing.finish(monkeypatch, exp=end)
    assert location == "/batches?status=failed"
    assert session["visitor"]["until"] <= int(end) + 1


def test_id_token_may_name_hundreds_of_groups(
    signing: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = ["readers", *(f"{number:036}" for number in range(200))]
    location, _ = signing.finish(monkeypatch, groups=groups)
    assert location == "/batches?status=failed"


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        pytest.param(200, {"aud": "other"}, id="token of another client"),
        pytest.param(200, {"exp": 1}, id="expired token"),
        pytest.param(503, {}, id="unreadable keys"),
    ],
)
def test_failure_of_the_provider_is_said_to_be_its_own(
    signing: SigningIn, monkeypatch: pytest.MonkeyPatch, status: int, changes: dict[str, Any]
) -> None:
    signing.provider.status = status
    location, session = signing.finish(monkeypatch, **changes)
    assert location == "/sign-in?problem=provider&next=%2Fbatches%3Fstatus%3Dfailed"
    assert session == {}


def test_target_that_does_not_fit_into_a_cookie_is_left_out(signing_portal: Portal) -> None:
    with signing_portal.client(None) as client:
        back = _approve(_start(client, f"/batches?user={'x' * 490}"), "otto")
        assert client.get(back).headers["location"] == "/"


def test_provider_that_is_away_is_said_so(
    shared: Database, api: StubApi, start_portal: Callable[..., Portal], tmp_path: Path
) -> None:
    portal = start_portal(
        shared.url("operator"), api.url, **_settings("http://127.0.0.1:9", tmp_path)
    )
    with portal.client(None) as client:
        assert _start(client) == "/sign-in?problem=provider&next=%2Fbatches"
        assert "did not sign you in" in client.get("/sign-in?problem=provider").text
