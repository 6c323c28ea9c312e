"""The way in: who gets in, what they see, and what is shut."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text

from lowtide.core.errors import Forbidden
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.tenants.passwords import PasswordSignIn, hash_password, matches
from lowtide.tenants.sign_in import Principal, Role, SignInGuard
from lowtide.tenants.store import TenantStore
from portal.pages.sign_in import _own_path
from portal.sessions import is_over, leave_session, open_session, visitor_of
from tests.conftest import API_KEY, PEPPER
from tests.portal.conftest import PORTAL_PASSWORD, VIEWER_PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

VISIT_KEY = "lt_visit"


def test_a_password_matches_itself_alone() -> None:
    stored = hash_password("correct horse")
    assert "correct" not in stored
    assert stored != hash_password("correct horse"), "salted"
    assert matches("correct horse", stored)
    assert not matches("correct horsf", stored)
    assert not matches("correct horse", stored.replace("scrypt", "plain"))
    with pytest.raises(ValueError, match="portal-password"):
        matches("x", "not a hash")


def test_viewers_only_look() -> None:
    Principal("ana", Role.OPERATOR).require_operator()
    with pytest.raises(Forbidden):
        Principal("ana", Role.VIEWER).require_operator()


def test_a_session_names_its_visitor_until_it_is_over() -> None:
    session: dict[str, object] = {"id": "of somebody else"}
    visitor = Principal("key default", Role.VIEWER, DEFAULT_TENANT, "key viewer key_1")
    open_session(session, visitor, 60)
    assert visitor_of(session) == visitor
    assert "id" not in session
    open_session(session, visitor, -1)
    assert visitor_of(session) is None
    assert visitor_of({}) is None


def test_a_session_that_was_left_is_over_wherever_it_is_open() -> None:
    sessions: list[dict[str, object]] = [{}, {}]
    for session in sessions:
        open_session(session, Principal("ana", Role.OPERATOR), 60)
    left, other = sessions
    copied = dict(left)
    leave_session(left)
    assert [visitor_of(each) for each in (left, copied)] == [None, None]
    assert [is_over(each) for each in (left, copied, other)] == [False, True, False]


def test_a_session_is_of_one_password_and_one_role() -> None:
    stored = hash_password("right")

    def guard(stored: str, role: Role = Role.VIEWER) -> SignInGuard:
        return SignInGuard([PasswordSignIn(stored, role)], timer=lambda: 0.0)

    credential = guard(stored).admit("right", "here").credential
    assert stored not in credential
    assert guard(stored).ended({credential}) == set()
    others = [(hash_password("right"), Role.VIEWER), (stored, Role.OPERATOR)]
    for changed, role in others:
        assert guard(changed, role).ended({credential}) == {credential}
    assert guard(stored).ended({""}) == {""}, "a session of before"
    assert SignInGuard([], timer=lambda: 0.0).ended({credential}) == {credential}


@pytest.fixture
def keys(shared: Database) -> Iterator[TenantStore]:
    """The keys of the tenant `default`; a test's own, `visit`, is revoked in the end."""
    registry = TenantStore(shared.engine("operator"), pepper=PEPPER)
    registry.add_key("default", "visit", VISIT_KEY, "me")
    yield registry
    with shared.engine("owner").begin() as connection:
        connection.execute(text("DELETE FROM api_keys WHERE name = 'visit'"))


def test_a_session_ends_with_its_key(portal: Portal, keys: TenantStore) -> None:
    with portal.client(VISIT_KEY) as client:
        assert client.get("/batches").status_code == 200
        keys.rotate_key("default", "visit", "lt_next", timedelta(hours=1), "me")
        assert client.get("/batches").status_code == 200
        keys.revoke_key("default", "visit", "me")
        for path in ("/batches", f"/batches/batch_{'0' * 32}/files/output"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"][:8]) == (303, "/sign-in")


def test_a_session_ends_with_its_keys_time(portal: Portal, keys: TenantStore) -> None:
    with portal.client(VISIT_KEY) as client:
        assert client.get("/batches").status_code == 200
        keys.rotate_key("default", "visit", "lt_next", timedelta(), "me")
        assert client.get("/batches").headers["location"].startswith("/sign-in")


def test_an_open_page_is_left_when_its_key_ends(
    portal: Portal, keys: TenantStore, visit: Callable[..., Visit]
) -> None:
    page = visit(f"{portal.url}/batches", secret=VISIT_KEY).page
    page.get_by_text("No batches yet").wait_for()
    keys.revoke_key("default", "visit", "me")
    page.wait_for_url("**/sign-in")


def test_an_open_page_is_left_when_its_session_is(
    portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = visit(f"{portal.url}/batches").page
    page.get_by_text("No batches yet").wait_for()
    page.context.request.post(f"{portal.url}/sign-out")
    page.wait_for_url("**/sign-in")


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        pytest.param("/batches?user=a%20b", "/batches?user=a%20b", id="own"),
        pytest.param("//evil.example", "/", id="no scheme"),
        pytest.param("/\\evil.example", "/", id="backslash"),
        pytest.param("https://evil.example", "/", id="elsewhere"),
        pytest.param("/\r\nSet-Cookie: a=b", "/", id="header"),
        pytest.param("", "/", id="nothing"),
    ],
)
def test_nobody_is_led_elsewhere(wanted: str, path: str) -> None:
    assert _own_path(wanted) == path


@pytest.mark.parametrize("path", ["/", "/batches", "/nowhere", "/_nicegui/client/x/upload/1"])
def test_nothing_is_shown_without_a_session(portal: Portal, path: str) -> None:
    answer = httpx.get(portal.url + path, trust_env=False)
    assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/sign-in")
    assert httpx.post(portal.url + path, trust_env=False).status_code == 401


def test_the_way_in_is_open_and_says_what_is_wrong(portal: Portal) -> None:
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
        pytest.param(API_KEY, 303, id="key: not the whole installation"),
    ],
)
def test_who_signs_in_sees_pages_until_signing_out(portal: Portal, secret: str, first: int) -> None:
    with portal.client(None) as client:
        entered = client.post("/sign-in", data={"secret": secret, "next": "/batches"})
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert entered.headers["location"] == "/batches"
        assert client.get("/").status_code == first
        client.post("/sign-out")
        assert client.get("/").headers["location"].startswith("/sign-in")


def test_another_site_is_refused(portal: Portal) -> None:
    headers = {"Origin": "https://evil.example"}
    with portal.client() as client:
        assert client.post("/sign-out", headers=headers).status_code == 403
        polling = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
        assert client.get(polling, headers=headers).status_code == 403
