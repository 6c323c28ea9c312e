"""Sessions that were signed out, and whose address is believed: portals as processes."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.tenants.sign_in import MOST_FAILURES, SignedOutStore, trim
from portal.sessions import READ_EVERY, SignedOut
from tests.portal.conftest import PATIENCE, PORTAL_PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Database
    from tests.portal.conftest import Portal

NOBODY = "http://127.0.0.1:1"
WAY_IN = (303, "/sign-in")


def session_of(portal: Portal) -> dict[str, str]:
    """Sign in, and return the cookie."""
    answer = httpx.post(
        f"{portal.url}/sign-in", data={"secret": PORTAL_PASSWORD}, trust_env=False, timeout=PATIENCE
    )
    assert answer.headers["location"] == "/"
    return dict(answer.cookies)


@contextmanager
def client(portal: Portal, session: dict[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=portal.url, cookies=session, trust_env=False, timeout=PATIENCE
    ) as made:
        yield made


def look(portal: Portal, session: dict[str, str], path: str = "/audit") -> tuple[int, str]:
    with client(portal, session) as visitor:
        answer = visitor.get(path)
    return answer.status_code, answer.headers.get("location", "").partition("?")[0]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_session_that_was_signed_out_stays_out_after_a_restart(
    database: Database, start_portal: Callable[..., Portal], end: signal.Signals
) -> None:
    first = start_portal(database.url("operator"), NOBODY)
    signed_out, kept = session_of(first), session_of(first)
    assert look(first, signed_out)[0] == look(first, kept)[0] == 200
    with client(first, signed_out) as visitor:
        visitor.post("/sign-out")
    assert look(first, signed_out) == WAY_IN, "a copy of the cookie"
    first.process.send_signal(end)
    first.process.wait(20)
    second = start_portal(database.url("operator"), NOBODY)
    assert look(second, signed_out) == WAY_IN
    assert look(second, kept)[0] == 200


def test_a_portal_that_cannot_ask_lets_no_earlier_session_in(
    database: Database, start_portal: Callable[..., Portal]
) -> None:
    first = start_portal(database.url("operator"), NOBODY)
    session = session_of(first)
    away = start_portal("postgresql://lowtide_operator:x@127.0.0.1:1/none", NOBODY)
    assert look(away, session)[0] == 503
    assert look(away, session_of(away), "/")[0] == 200


def guesses(portal: Portal, addresses: list[str]) -> list[str]:
    """Guess once from each address that the header claims, all at once; return the problems."""

    def guess(address: str) -> str:
        answer = httpx.post(
            f"{portal.url}/sign-in",
            data={"secret": "wrong"},
            headers={"X-Forwarded-For": address},
            trust_env=False,
            timeout=PATIENCE,
        )
        return answer.headers["location"].partition("problem=")[2][:3]

    with ThreadPoolExecutor(len(addresses)) as pool:
        return sorted(pool.map(guess, addresses))


def test_nobody_is_believed_to_be_somebody_else(
    database: Database, start_portal: Callable[..., Portal]
) -> None:
    portal = start_portal(database.url("operator"), NOBODY, FORWARDED_ALLOW_IPS="*")
    claimed = [f"192.0.2.{number}" for number in range(MOST_FAILURES + 1)]
    assert guesses(portal, claimed) == ["401"] * MOST_FAILURES + ["429"]


def test_a_proxy_that_is_named_is_believed(
    database: Database, start_portal: Callable[..., Portal]
) -> None:
    portal = start_portal(
        database.url("operator"), NOBODY, LOWTIDE_PORTAL_TRUSTED_PROXIES="127.0.0.0/8"
    )
    attacker = ["203.0.113.9"] * (MOST_FAILURES + 1)
    assert guesses(portal, attacker)[-1] == "429"
    # What the attacker says beside it, the proxy puts in front of the address that it sees.
    assert guesses(portal, ["192.0.2.1, 203.0.113.9"]) == ["429"]
    assert guesses(portal, ["192.0.2.1"]) == ["401"], "others are not shut out"


def test_what_is_saved_is_read_until_it_ends(database: Database) -> None:
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


def test_the_tick_drops_what_has_ended_and_cannot_let_anybody_in(database: Database) -> None:
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
