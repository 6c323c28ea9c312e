"""Who is let in, and how often somebody may guess."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import TooManyRequests, Unauthenticated, Unavailable
from lowtide.tenants.sign_in import (
    MOST_FAILURES,
    MOST_PLACES,
    WITHIN_SECONDS,
    Principal,
    Role,
    SignInGuard,
    network_of,
)

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"
OPERATOR, WRONG = "operator", "wrong"


class Secrets:
    """A way in by `operator`, `viewer` or `lt_key`; it counts what it compares, and can be away."""

    def __init__(self) -> None:
        self.compared = 0
        self.away = False
        self.waits: threading.Event | None = None

    def visitor(self, secret: str) -> Principal | None:
        if self.away:
            raise Unavailable("The database is away.")
        self.compared += 1
        if self.waits is not None:
            assert self.waits.wait(30)
        roles = {"operator": Role.OPERATOR, "viewer": Role.VIEWER, "lt_key": Role.VIEWER}
        return Principal(secret, roles[secret]) if secret in roles else None

    def holding(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        return credentials


class Door:
    """An entrance, its only way in, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.way = Secrets()
        self.guard = SignInGuard([self.way], timer=lambda: self.now)

    def guess(self, address: str = HERE, times: int = MOST_FAILURES, secret: str = WRONG) -> None:
        for _ in range(times):
            with pytest.raises(Unauthenticated):
                self.guard.admit(secret, address)

    def is_shut(self, address: str = HERE, secret: str = OPERATOR) -> bool:
        try:
            self.guard.admit(secret, address)
        except TooManyRequests:
            return True
        return False


@pytest.fixture
def door() -> Door:
    return Door()


def test_ten_wrong_tries_shut_an_address_for_a_minute(door: Door) -> None:
    door.guess(secret="")
    assert door.is_shut()
    assert not door.is_shut(ELSEWHERE)
    door.now = WITHIN_SECONDS
    assert not door.is_shut()


def test_wrong_passwords_do_not_shut_keys_out_nor_the_other_way(door: Door) -> None:
    door.guess()
    assert not door.is_shut(secret="lt_key")
    door.guess(ELSEWHERE, secret="lt_wrong")
    assert door.is_shut(ELSEWHERE, secret="lt_key")
    assert not door.is_shut(ELSEWHERE)


def test_tries_at_once_are_counted_before_their_secrets_are_compared(door: Door) -> None:
    door.way.waits = threading.Event()
    refused = threading.Semaphore(0)

    def guess() -> type[Exception]:
        try:
            door.guard.admit("wrong", HERE)
        except TooManyRequests:
            refused.release()
            return TooManyRequests
        except Unauthenticated:
            return Unauthenticated
        raise AssertionError("a wrong secret let somebody in")

    with ThreadPoolExecutor(40) as pool:
        guesses = [pool.submit(guess) for _ in range(40)]
        try:
            for _ in range(40 - MOST_FAILURES):
                assert refused.acquire(timeout=20), "more than ten are compared"
        finally:
            door.way.waits.set()
        outcomes = [each.result() for each in guesses]
    assert outcomes.count(Unauthenticated) == door.way.compared == MOST_FAILURES


def test_signing_in_as_somebody_else_buys_no_further_tries(door: Door) -> None:
    door.guess(times=MOST_FAILURES - 1)
    assert door.guard.admit("viewer", HERE).role is Role.VIEWER
    door.guess(times=1)
    assert door.is_shut()


def test_who_signs_in_often_is_not_shut_out(door: Door) -> None:
    for _ in range(3 * MOST_FAILURES):
        assert door.guard.admit("operator", HERE).role is Role.OPERATOR


def test_a_database_that_is_away_is_no_wrong_try(door: Door) -> None:
    door.way.away = True
    for _ in range(2 * MOST_FAILURES):
        with pytest.raises(Unavailable):
            door.guard.admit("lt_key", HERE)
    door.way.away = False
    assert not door.is_shut(secret="lt_key")


def test_many_addresses_shut_nobody_out_and_open_nothing(door: Door) -> None:
    for number in range(2 * MOST_PLACES):
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        door.guess(address, times=1)
        if number % 1000 == 0:
            # One that goes on guessing meanwhile is not forgotten for the others.
            if number == 0:
                door.guess(ELSEWHERE)
            assert door.is_shut(ELSEWHERE)
    assert len(door.guard._attempts) <= MOST_PLACES
    assert not door.is_shut()


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "somewhere", False),
    ],
)
def test_tries_of_one_network_are_counted_together(one: str, other: str, together: bool) -> None:
    assert (network_of(one) == network_of(other)) is together
