"""Sign-in, sessions, and access to pages."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text

from lowtide.core.errors import Forbidden
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.scopes import Role
from lowtide.tenants.callers import Authenticator
from lowtide.tenants.keys import EVERYTHING, KeyTerms
from lowtide.tenants.passwords import PasswordSignIn, hash_password, matches
from lowtide.tenants.sign_in import KeySignIn, Principal, SignInGuard
from lowtide.tenants.store import TenantStore
from portal.pages.sign_in import _own_path
from portal.sessions import is_over, leave_session, open_session, principal_of
from tests.conftest import API_KEY, PEPPER
from tests.portal.conftest import PORTAL_PASSWORD, VIEWER_PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

VISIT_KEY = "lt_visit"
SCOPED_KEY = "lt_scoped"


def test_hash_matches_only_its_password() -> None:
    stored = hash_password("correct horse")
    assert "correct" not in stored
    assert stored != hash_password("correct horse"), "the hash is salted"
    assert matches("correct horse", stored)
    assert not matches("correct horsf", stored)
    assert not matches("correct horse", stored.replace("scrypt", "plain"))
    with pytest.raises(ValueError, match="portal-password"):
        matches("x", "not a hash")


def test_viewer_is_not_an_operator() -> None:
    Principal("ana", Role.OPERATOR).require_operator()
    with pytest.raises(Forbidden):
        Principal("ana", Role.VIEWER).require_operator()


def test_session_identifies_principal_until_it_expires() -> None:
    session: dict[str, object] = {"id": "of somebody else"}
    principal = Principal(
        "default (api key 1a2b3c4d)", Role.VIEWER, DEFAULT_TENANT, "key viewer key_1"
    )
    open_session(session, principal, 60)
    assert principal_of(session) == principal
    assert "id" not in session
    open_session(session, principal, -1)
    assert principal_of(session) is None
    assert principal_of({}) is None


def test_sign_out_ends_every_copy_of_session() -> None:
    sessions: list[dict[str, object]] = [{}, {}]
    for session in sessions:
        open_session(session, Principal("ana", Role.OPERATOR), 60)
    left, other = sessions
    copied = dict(left)
    leave_session(left)
    assert [principal_of(each) for each in (left, copied)] == [None, None]
    assert [is_over(each) for each in (left, copied, other)] == [False, True, False]


def test_session_ends_when_password_or_role_changes() -> None:
    stored = hash_password("right")

    def guard(stored: str, role: Role = Role.VIEWER) -> SignInGuard:
        return SignInGuard([PasswordSignIn(stored, role)], timer=lambda: 0.0)

    credential = guard(stored).admit("right", "here").credential
    assert stored not in credential
    assert guard(stored).ended({credential}) == set()
    changes = [(hash_password("right"), Role.VIEWER), (stored, Role.OPERATOR)]
    for changed, role in changes:
        assert guard(changed, role).ended({credential}) == {credential}
    assert guard(stored).ended({""}) == {""}, "a session without a credential"
    assert SignInGuard([], timer=lambda: 0.0).ended({credential}) == {credential}


@pytest.mark.parametrize(
    ("name", "actor"),
    [
        pytest.param("", "operator (portal)", id="none"),
        pytest.param("Ada Lovelace", "Ada Lovelace (portal)", id="name"),
        pytest.param("Zo\u00eb \u674e", "Zo\u00eb \u674e (portal)", id="beyond ASCII"),
        pytest.param("  Ada \t\r\n Lovelace ", "Ada Lovelace (portal)", id="spaces"),
        pytest.param("Ada\x00\x1b[31m\u202e", "Ada [31m (portal)", id="control characters"),
        pytest.param("\u200b\u202e \n", "operator (portal)", id="nothing printable"),
        pytest.param("x" * 63 + " y", "x" * 63 + " (portal)", id="long"),
        pytest.param("laptop (api key)", "laptop (api key) (portal)", id="a key's name"),
        pytest.param("<b>Ada</b>", "<b>Ada</b> (portal)", id="markup stays text"),
    ],
)
def test_password_takes_the_name_of_a_person(name: str, actor: str) -> None:
    guard = SignInGuard([PasswordSignIn(hash_password("right"), Role.OPERATOR)], timer=lambda: 0.0)
    assert guard.admit("right", "here", name).name == actor


def test_api_key_keeps_its_own_name(portal: Portal) -> None:
    with portal.client(None) as client:
        client.post("/sign-in", data={"secret": API_KEY, "name": "Ada"})
        page = client.get("/batches").text
    assert "Sign out default (api key " in page
    assert "Ada" not in page


def test_name_is_shown_as_text_and_remembered_after_sign_out(portal: Portal) -> None:
    name = '<i>Ada</i>" onfocus="x'
    with portal.client(None) as client:
        response = client.post("/sign-in", data={"secret": PORTAL_PASSWORD, "name": name})
        (cookie,) = (
            each.lower()
            for each in response.headers.get_list("set-cookie")
            if each.startswith("name=")
        )
        assert all(part in cookie for part in ("httponly", "samesite=lax", "path=/sign-in"))
        page = client.get("/batches").text
        client.post("/sign-out")
        again = client.get("/sign-in").text
    assert "Sign out" in page
    assert "Ada" in page
    assert "<i>" not in page
    assert "Ada" in again
    assert "<i>" not in again


@pytest.fixture
def keys(shared: Database) -> Iterator[TenantStore]:
    """The tenant store, with a key `visit` of the tenant `default` for the length of a test."""
    store = TenantStore(shared.engine("operator"), pepper=PEPPER)
    store.add_key("default", "visit", VISIT_KEY, EVERYTHING, "me")
    yield store
    with shared.engine("owner").begin() as connection:
        connection.execute(text("DELETE FROM api_keys WHERE name = 'visit'"))


def test_key_without_every_scope_opens_the_portal_to_a_viewer(
    shared: Database, keys: TenantStore
) -> None:
    keys.revoke_key("default", "visit", "me")
    terms = KeyTerms.parse(["files:read", "batches:read", "batches:write"])
    keys.add_key("default", "visit", SCOPED_KEY, terms, "me")
    callers = Authenticator(shared.engine("api"), pepper=PEPPER, anonymous=None)
    sign_in = KeySignIn(callers, Role.OPERATOR)
    of_part, of_all = sign_in.authenticate(SCOPED_KEY), sign_in.authenticate(API_KEY)
    assert of_part is not None
    assert of_all is not None
    assert (of_part.role, of_all.role) == (Role.VIEWER, Role.OPERATOR)


def test_key_that_may_not_read_does_not_open_the_portal(portal: Portal, keys: TenantStore) -> None:
    keys.revoke_key("default", "visit", "me")
    keys.add_key("default", "visit", SCOPED_KEY, KeyTerms.parse(["files:read"]), "me")
    with portal.client(None) as client:
        answer = client.post("/sign-in", data={"secret": SCOPED_KEY})
        page = client.get(answer.headers["location"])
    assert "This API key may not read" in page.text


def test_session_ends_when_key_is_revoked(portal: Portal, keys: TenantStore) -> None:
    with portal.client(VISIT_KEY) as client:
        assert client.get("/batches").status_code == 200
        keys.rotate_key("default", "visit", "lt_next", timedelta(hours=1), "me")
        assert client.get("/batches").status_code == 200
        keys.revoke_key("default", "visit", "me")
        for path in ("/batches", f"/batches/batch_{'0' * 32}/files/output"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"][:8]) == (303, "/sign-in")


def test_session_ends_when_key_expires(portal: Portal, keys: TenantStore) -> None:
    with portal.client(VISIT_KEY) as client:
        assert client.get("/batches").status_code == 200
        keys.rotate_key("default", "visit", "lt_next", timedelta(), "me")
        assert client.get("/batches").headers["location"].startswith("/sign-in")


def test_open_page_redirects_when_key_is_revoked(
    portal: Portal, keys: TenantStore, visit: Callable[..., Visit]
) -> None:
    page = visit(f"{portal.url}/batches", secret=VISIT_KEY).page
    page.get_by_text("No batches yet").wait_for()
    keys.revoke_key("default", "visit", "me")
    page.wait_for_url("**/sign-in")


def test_open_page_redirects_after_sign_out(portal: Portal, visit: Callable[..., Visit]) -> None:
    page = visit(f"{portal.url}/batches").page
    page.get_by_text("No batches yet").wait_for()
    page.context.request.post(f"{portal.url}/sign-out")
    page.wait_for_url("**/sign-in")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        pytest.param("/batches?user=a%20b", "/batches?user=a%20b", id="own path"),
        pytest.param("//evil.example", "/", id="scheme-relative"),
        pytest.param("/\\evil.example", "/", id="backslash"),
        pytest.param("https://evil.example", "/", id="other origin"),
        pytest.param("/\r\nSet-Cookie: a=b", "/", id="header"),
        pytest.param("", "/", id="empty"),
    ],
)
def test_redirect_after_sign_in_stays_on_own_site(target: str, path: str) -> None:
    assert _own_path(target) == path


@pytest.mark.parametrize("path", ["/", "/batches", "/nowhere", "/_nicegui/client/x/upload/1"])
def test_request_without_session_is_refused(portal: Portal, path: str) -> None:
    answer = httpx.get(portal.url + path, trust_env=False)
    assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/sign-in")
    assert httpx.post(portal.url + path, trust_env=False).status_code == 401


def test_sign_in_page_is_public_and_reports_failure(portal: Portal) -> None:
    with portal.client(None) as client:
        page = client.get("/sign-in", params={"next": '/batches"><script>'})
        assert page.status_code == 200
        assert "<script>//" not in page.text
        assert page.headers["x-frame-options"] == "DENY"
        wrong = client.post("/sign-in", data={"secret": "wrong", "next": "/batches"})
        assert wrong.headers["location"] == "/sign-in?problem=401&next=%2Fbatches"
        assert client.get("/", follow_redirects=False).status_code == 303


@pytest.mark.parametrize(
    ("secret", "first"),
    [
        pytest.param(PORTAL_PASSWORD, 200, id="operator"),
        pytest.param(VIEWER_PASSWORD, 200, id="viewer"),
        pytest.param(API_KEY, 303, id="key of a tenant"),
    ],
)
def test_sign_in_gives_access_until_sign_out(portal: Portal, secret: str, first: int) -> None:
    with portal.client(None) as client:
        response = client.post("/sign-in", data={"secret": secret, "next": "/batches"})
        cookie = response.headers["set-cookie"].lower()
        assert not cookie.startswith("name=")
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert response.headers["location"] == "/batches"
        assert client.get("/").status_code == first
        client.post("/sign-out")
        assert client.get("/").headers["location"].startswith("/sign-in")


def test_foreign_origin_is_refused(portal: Portal) -> None:
    headers = {"Origin": "https://evil.example"}
    with portal.client() as client:
        assert client.post("/sign-out", headers=headers).status_code == 403
        polling = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
        assert client.get(polling, headers=headers).status_code == 403
