"""Signed-out sessions and trusted client addresses, with portals as processes."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.tenants.sign_in import MAX_FAILURES, SignedOutStore, trim
from portal.sessions import READ_EVERY, SignedOut
from tests.portal.conftest import ANSWER_TIMEOUT, PORTAL_PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Database
    from tests.portal.conftest import Portal

UNREACHABLE = "http://127.0.0.1:1"
SIGN_IN = (303, "/sign-in")


def session_of(portal: Portal) -> dict[str, str]:
    """Sign in; return the cookies."""
    answer = httpx.post(
        f"{portal.url}/sign-in",
        data={"secret": PORTAL_PASSWORD},
        trust_env=False,
        timeout=ANSWER_TIMEOUT,
    )
    assert answer.headers["location"] == "/"
    return dict(answer.cookies)


@contextmanager
def client(portal: Portal, session: dict[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=portal.url, cookies=session, trust_env=False, timeout=ANSWER_TIMEOUT
    ) as opened:
        yield opened


def get_page(portal: Portal, session: dict[str, str], path: str = "/audit") -> tuple[int, str]:
    with client(portal, session) as visitor:
        answer = visitor.get(path)
    return answer.status_code, answer.headers.get("location", "").partition("?")[0]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_signed_out_session_stays_out_after_restart(
    database: Database, start_portal: Callable[..., Portal], end: signal.Signals
) -> None:
    first = start_portal(database.url("operator"), UNREACHABLE)
    signed_out, kept = session_of(first), session_of(first)
    assert get_page(first, signed_out)[0] == get_page(first, kept)[0] == 200
    with client(first, signed_out) as visitor:
        visitor.post("/sign-out")
    assert get_page(first, signed_out) == SIGN_IN, "a copy of the cookie"
    first.process.send_signal(end)
    first.process.wait(20)
    second = start_portal(database.url("operator"), UNREACHABLE)
    assert get_page(second, signed_out) == SIGN_IN
    assert get_page(second, kept)[0] == 200


def test_portal_without_database_refuses_earlier_session(
    database: Database, start_portal: Callable[..., Portal]
) -> None:
    first = start_portal(database.url("operator"), UNREACHABLE)
    session = session_of(first)
    disconnected = start_portal("postgresql://lowtide_operator:x@127.0.0.1:1/none", UNREACHABLE)
    assert get_page(disconnected, session)[0] == 503
    assert get_page(disconnected, session_of(disconnected), "/")[0] == 200


def guesses(portal: Portal, addresses: list[str]) -> list[str]:
    """Guess once for each forwarded address, concurrently; return the problem codes."""

    def guess(address: str) -> str:
        answer = httpx.post(
            f"{portal.url}/sign-in",
            data={"secret": "wrong"},
            headers={"X-Forwarded-For": address},
            trust_env=False,
            timeout=ANSWER_TIMEOUT,
        )
        return answer.headers["location"].partition("problem=")[2][:3]

    with ThreadPoolExecutor(len(addresses)) as pool:
        return sorted(pool.map(guess, addresses))


def test_forwarded_address_of_untrusted_proxy_is_ignored(
    database: Database, start_portal: Callable[..., Portal]
) -> None:
    portal = start_portal(database.url("operator"), UNREACHABLE, FORWARDED_ALLOW_IPS="*")
    claimed = [f"192.0.2.{number}" for number in range(MAX_FAILURES + 1)]
    assert guesses(portal, claimed) == ["401"] * MAX_FAILURES + ["429"]


def test_forwarded_address_of_trusted_proxy_is_used(
    database: Database, start_portal: Callable[..., Portal]
) -> None:
    portal = start_portal(
        database.url("operator"), UNREACHABLE, LOWTIDE_PORTAL_TRUSTED_PROXIES="127.0.0.0/8"
    )
    attacker = ["203.0.113.9"] * (MAX_FAILURES + 1)
    assert guesses(portal, attacker)[-1] == "429"
    # The proxy appends the peer's address to the header that the attacker sent.
    assert guesses(portal, ["192.0.2.1, 203.0.113.9"]) == ["429"]
    assert guesses(portal, ["192.0.2.1"]) == ["401"], "other addresses are not locked"


def test_saved_sign_out_is_read_until_it_expires(database: Database) -> None:
    now = [1000.0]
    ours, others = (SignedOut(clock=lambda: now[0]) for _ in range(2))
    for each in (ours, others):
        each.keep_in(SignedOutStore(database.engine("operator")))
        assert each.knows(1000.0)
        assert not each.knows(999.0)
    later = 4_000_000_000.0  # the database has its own clock
    ours.add("a", later)
    assert "a" in ours
    ours.sync()
    others.sync()
    assert "a" in others
    assert others.knows(0.0)
    assert not others.is_due()
    now[0] += READ_EVERY
    assert others.is_due()
    others.add("b", later)
    others.sync()
    ours.sync()
    assert "b" in ours
    now[0] = later
    ours.sync()
    assert "a" not in ours


def test_tick_trims_only_expired_sign_outs(database: Database) -> None:
    store = SignedOutStore(database.engine("operator"))
    store.add({"ended": 1000.0, "lasts": 4_000_000_000.0})
    store.add({"lasts": 4_000_000_000.0})
    with database.engine("worker").begin() as connection:
        assert trim(connection) == 1
        assert connection.execute(text("DELETE FROM signed_out")).rowcount == 0
    assert store.read() == {"lasts": 4_000_000_000.0}
    for role, statement in (
        ("worker", "SELECT session FROM signed_out"),
        ("operator", "DELETE FROM signed_out"),
        ("api", "SELECT until FROM signed_out"),
    ):
        with (
            pytest.raises(DBAPIError, match="permission denied"),
            database.engine(role).begin() as connection,
        ):
            connection.execute(text(statement))


def test_sessions_outlive_a_rotation_of_the_secret(
    database: Database, start_portal: Callable[..., Portal]
) -> None:
    def start(secret: str, previous: str = "") -> Portal:
        return start_portal(
            database.url("operator"),
            UNREACHABLE,
            LOWTIDE_PORTAL_SECRET=secret,
            LOWTIDE_PORTAL_SECRET_PREVIOUS=previous,
        )

    first, second, last = start("old", "new"), start("new", "old"), start("new")
    old, new = session_of(first), session_of(second)
    for portal in (first, second):
        assert get_page(portal, old)[0] == get_page(portal, new)[0] == 200, "side by side"
    assert get_page(last, new)[0] == 200, "signed with the new secret"
    assert get_page(last, old) == SIGN_IN
