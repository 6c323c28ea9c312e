"""The sign-in guard: accepted secrets, and the limit of failed attempts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import TooManyRequests, Unauthenticated, Unavailable
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.scopes import Role
from lowtide.identity.parsing import parse
from lowtide.tenants.sign_in import (
    MAX_FAILURES,
    MAX_PLACES,
    WITHIN_SECONDS,
    Principal,
    SignInGuard,
    TokenSignIn,
    network_of,
)

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

ADDRESS, OTHER_ADDRESS = "192.0.2.1", "192.0.2.2"
OPERATOR, WRONG = "operator", "wrong"


class FakeSignIn:
    """Accepts `operator`, `viewer` and `lt_key`; counts comparisons, and can be unavailable."""

    needs_database = False

    def __init__(self) -> None:
        self.comparisons = 0
        self.unavailable = False
        self.gate: threading.Event | None = None

    def authenticate(self, secret: str) -> Principal | None:
        if self.unavailable:
            raise Unavailable("The database is unavailable.")
        self.comparisons += 1
        if self.gate is not None:
            assert self.gate.wait(30)
        roles = {"operator": Role.OPERATOR, "viewer": Role.VIEWER, "lt_key": Role.VIEWER}
        return Principal(secret, roles[secret]) if secret in roles else None

    def holding(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        return credentials


class GuardedSignIn:
    """A guard over one sign-in, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sign_in = FakeSignIn()
        self.guard = SignInGuard([self.sign_in], timer=lambda: self.now)

    def guess(self, address: str = ADDRESS, times: int = MAX_FAILURES, secret: str = WRONG) -> None:
        for _ in range(times):
            with pytest.raises(Unauthenticated):
                self.guard.admit(secret, address)

    def is_locked(self, address: str = ADDRESS, secret: str = OPERATOR) -> bool:
        try:
            self.guard.admit(secret, address)
        except TooManyRequests:
            return True
        return False


@pytest.fixture
def guarded() -> GuardedSignIn:
    return GuardedSignIn()


def test_ten_failures_lock_address_for_a_minute(guarded: GuardedSignIn) -> None:
    guarded.guess(secret="")
    assert guarded.is_locked()
    assert not guarded.is_locked(OTHER_ADDRESS)
    guarded.now = WITHIN_SECONDS
    assert not guarded.is_locked()


def test_failures_of_passwords_and_keys_are_counted_separately(guarded: GuardedSignIn) -> None:
    guarded.guess()
    assert not guarded.is_locked(secret="lt_key")
    guarded.guess(OTHER_ADDRESS, secret="lt_wrong")
    assert guarded.is_locked(OTHER_ADDRESS, secret="lt_key")
    assert not guarded.is_locked(OTHER_ADDRESS)


def test_concurrent_attempts_are_counted_before_comparison(guarded: GuardedSignIn) -> None:
    guarded.sign_in.gate = threading.Event()
    refused = threading.Semaphore(0)

    def guess() -> type[Exception]:
        try:
            guarded.guard.admit("wrong", ADDRESS)
        except TooManyRequests:
            refused.release()
            return TooManyRequests
        except Unauthenticated:
            return Unauthenticated
        raise AssertionError("a wrong secret was accepted")

    with ThreadPoolExecutor(40) as pool:
        guesses = [pool.submit(guess) for _ in range(40)]
        try:
            for _ in range(40 - MAX_FAILURES):
                assert refused.acquire(timeout=20), "more than ten secrets were compared"
        finally:
            guarded.sign_in.gate.set()
        outcomes = [each.result() for each in guesses]
    assert outcomes.count(Unauthenticated) == guarded.sign_in.comparisons == MAX_FAILURES


def test_successful_sign_in_does_not_reset_failures(guarded: GuardedSignIn) -> None:
    guarded.guess(times=MAX_FAILURES - 1)
    assert guarded.guard.admit("viewer", ADDRESS).role is Role.VIEWER
    guarded.guess(times=1)
    assert guarded.is_locked()


def test_frequent_sign_ins_do_not_lock_address(guarded: GuardedSignIn) -> None:
    for _ in range(3 * MAX_FAILURES):
        assert guarded.guard.admit("operator", ADDRESS).role is Role.OPERATOR


def test_unavailable_database_is_not_counted_as_failure(guarded: GuardedSignIn) -> None:
    guarded.sign_in.unavailable = True
    for _ in range(2 * MAX_FAILURES):
        with pytest.raises(Unavailable):
            guarded.guard.admit("lt_key", ADDRESS)
    guarded.sign_in.unavailable = False
    assert not guarded.is_locked(secret="lt_key")


def test_many_guessing_addresses_neither_lock_nor_unlock_others(guarded: GuardedSignIn) -> None:
    for number in range(2 * MAX_PLACES):
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        guarded.guess(address, times=1)
        if number % 1000 == 0:
            # An address that keeps guessing stays locked while others are evicted.
            if number == 0:
                guarded.guess(OTHER_ADDRESS)
            assert guarded.is_locked(OTHER_ADDRESS)
    assert len(guarded.guard._attempts) <= MAX_PLACES
    assert not guarded.is_locked()


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
def test_attempts_of_one_network_are_counted_together(one: str, other: str, together: bool) -> None:
    assert (network_of(one) == network_of(other)) is together


PROVIDERS = """\
issuers:
  - issuer: https://login.example.com
    audience: lowtide
    user: email
    tenant: {claim: team, names: {search: default, ads: default}}
    roles: {viewer: [readers, guests], admin: [bosses]}
portal: {issuer: "https://login.example.com", client_id: portal}
"""


def token_sign_in(text: str) -> TokenSignIn:
    """Return the sign-in at the provider of a file."""
    client = parse(text).portal
    assert client is not None
    return TokenSignIn(client)


@pytest.mark.parametrize(
    ("old", "new", "holds"),
    [
        ("user: email", "user: sub", True),
        ("[readers, guests]", "[guests, readers]", True),
        ("{search: default, ads: default}", "{ads: default, search: default}", True),
        ("[readers, guests]", "[readers]", False),
        ("admin: [bosses]", "admin: [bosses], every_tenant: [platform]", False),
        ("roles: {", "roles: {claim: roles, ", False),
        ("ads: default", "ads: acme", False),
        ("claim: team", "claim: [org, team]", False),
        ("client_id: portal", "client_id: other", False),
    ],
)
def test_session_ends_with_the_rules_that_opened_it(old: str, new: str, holds: bool) -> None:
    client = parse(PROVIDERS).portal
    assert client is not None
    identity = client.issuer.identity({"sub": "7", "team": "search", "groups": ["guests"]})
    principal = TokenSignIn(client).principal(identity, {"default": DEFAULT_TENANT})
    assert old in PROVIDERS
    later = token_sign_in(PROVIDERS.replace(old, new))
    assert bool(later.holding({principal.credential})) is holds
