"""Sign-in to the portal: roles, API keys, the guard against guessing, and ended sessions."""

from __future__ import annotations

import hashlib
import ipaddress
import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import text

from lowtide.core.errors import Forbidden, TooManyRequests, Unauthenticated
from lowtide.core.ids import format_key_id, parse_key_id
from lowtide.core.scopes import EVERY_SCOPE, READING, Role, Scope
from lowtide.database.connections import acting_for, begin
from lowtide.tenants.keys import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import KeyId, TenantId
    from lowtide.identity.model import Identity, PortalClient
    from lowtide.tenants.callers import Authenticator


_MAX_NAME: Final = 64
_MAX_USER: Final = 40


def clean_name(name: str) -> str:
    """Return a person's name as one line of up to 64 printable characters."""
    words = "".join(each if each.isprintable() else " " for each in name).split()
    return " ".join(words)[:_MAX_NAME].strip()


@dataclass(frozen=True, slots=True)
class Principal:
    """A signed-in principal with access to `tenant`, or with None to every tenant.

    `name` is the principal's name in the audit log; `credential` identifies the secret of the
    sign-in without revealing it.
    """

    name: str
    role: Role
    tenant: TenantId | None = None
    credential: str = ""

    @property
    def may_act(self) -> bool:
        """True if the principal may change something."""
        return self.role is not Role.VIEWER

    def require_operator(self) -> None:
        """Raise Forbidden for a viewer."""
        if not self.may_act:
            raise Forbidden("Viewers cannot make changes: sign in as an operator.")

    def require_operator_of_all(self) -> None:
        """Raise Forbidden for a viewer, and for an operator of one tenant."""
        self.require_operator()
        if self.tenant is not None:
            raise Forbidden("This affects all tenants, but you are signed in to one.")

    @property
    def may_administer(self) -> bool:
        """True if the principal may change tenants, keys and buckets."""
        return self.role is Role.ADMIN and self.tenant is None

    def require_admin(self) -> None:
        """Raise Forbidden for all but an admin of every tenant."""
        if not self.may_administer:
            raise Forbidden("Only admins change tenants and keys: sign in as an admin.")


class SignIn(Protocol):
    """A method of sign-in with a secret; `needs_database` is True if it reads the database."""

    needs_database: bool

    def authenticate(self, secret: str) -> Principal | None:
        """Return the principal of a secret; None if it is not valid for this method."""
        ...

    def holding(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return those of `credentials` that are still valid for this method."""
        ...


class KeySignIn:
    """Sign-in with an API key, with access to the key's tenant only."""

    needs_database = True

    def __init__(self, tenants: Authenticator, role: Role) -> None:
        self._tenants = tenants
        self._role = role

    def authenticate(self, secret: str) -> Principal | None:
        """Return the principal of a key; None if it is not in use.

        A key that may not do everything opens the portal to a viewer. Raises MissingScope for one
        that may not read.
        """
        if not secret.startswith(PREFIX):
            return None
        try:
            caller = self._tenants.caller(f"Bearer {secret}")
        except Unauthenticated:
            return None
        if caller.key is None:
            return None
        for scope in Scope:
            if scope in READING:
                caller.require(scope)
        role = self._role if caller.scopes == EVERY_SCOPE else Role.VIEWER
        return Principal(caller.actor, role, caller.tenant, self._credential(caller.key))

    def holding(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return the credentials of keys that are in use and have the current role of keys."""
        keys = {
            key: credential
            for credential in credentials
            if (key := parse_key_id(credential.rpartition(" ")[2])) is not None
            and credential == self._credential(key)
        }
        return {keys[key] for key in self._tenants.in_use(keys)} if keys else set()

    def _credential(self, key: KeyId) -> str:
        return f"key {self._role} {format_key_id(key)}"


class TokenSignIn:
    """Sign-in at an identity provider, which checks the secret.

    A session ends with the rules for tenants and roles that it was opened by.
    """

    needs_database = False

    def __init__(self, client: PortalClient) -> None:
        self.client = client
        rules = hashlib.sha256(client.issuer.mapping.encode()).hexdigest()[:16]
        self._credential = f"oidc {client.issuer.url} {client.client_id} {rules}"

    def authenticate(self, secret: str) -> Principal | None:  # noqa: ARG002 - as of every method
        """Return None: no secret of the provider is for us."""
        return None

    def holding(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return the credential of the provider at which people sign in now."""
        return credentials & {self._credential}

    def principal(self, identity: Identity, tenants: Mapping[str, TenantId]) -> Principal:
        """Return the principal of an identity, given the tenants by name; raises Forbidden."""
        name = clean_name(
            f"{clean_name(identity.user)[:_MAX_USER]} ({urlsplit(identity.issuer).netloc})"
        )
        if identity.role is None:
            raise Forbidden("Your account has no role here: ask the operator for one.")
        if identity.sees_every_tenant:
            return Principal(name, identity.role, None, self._credential)
        tenant = tenants.get(identity.tenant or "")
        if tenant is None:
            raise Forbidden("Your account is of no tenant here: ask the operator to map it to one.")
        return Principal(name, identity.role, tenant, self._credential)


MAX_FAILURES: Final = 10
WITHIN_SECONDS: Final = 60.0
MAX_PLACES: Final = 10_000
_MAX_SECRET_LENGTH: Final = 256
_IPV6_PREFIX: Final = 64  # one subscriber can use any address of it

_Source = tuple[str, str]


class SignInGuard:
    """Sign-in by the first method that accepts the secret, with a guard against guessing.

    Ten wrong secrets of one kind from one network in a minute block that kind for that network
    only. An attempt is counted before its secret is compared, which also limits concurrent ones.
    """

    def __init__(self, methods: Sequence[SignIn], *, timer: Callable[[], float]) -> None:
        self._methods = methods
        self._timer = timer
        self._attempts: OrderedDict[_Source, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def takes_secrets(self) -> bool:
        """True if there is a password, or API keys are accepted."""
        return any(not isinstance(method, TokenSignIn) for method in self._methods)

    def admit(self, secret: str, address: str, name: str = "") -> Principal:
        """Return the principal of a secret; a key has its own name, a password that of a person.

        Raises Unauthenticated, MissingScope, TooManyRequests or Unavailable. `address` is the
        client's network address.
        """
        source = ("key" if secret.startswith(PREFIX) else "password", network_of(address))
        attempted_at = self._record_attempt(source)
        try:
            principal = self._find_principal(secret)
        except BaseException:
            self._forget_attempt(
                source, attempted_at
            )  # nothing was compared: the database is unavailable
            raise
        if principal is None:
            raise Unauthenticated("Incorrect password or API key.")
        # Only this attempt: a viewer's password must not reset the attempts at the operator's.
        self._forget_attempt(source, attempted_at)
        person = clean_name(name)
        if not person or principal.tenant is not None:
            return principal
        return replace(principal, name=f"{person} (portal)")

    def ended(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return those of `credentials` that are no longer valid; raises Unavailable."""
        remaining = set(credentials)
        for method in self._methods:
            remaining -= method.holding(remaining)
        return remaining

    def holds_offline(self, credential: str) -> bool:
        """Return True if a method that needs no database says that a credential is still valid."""
        return any(
            credential in method.holding({credential})
            for method in self._methods
            if not method.needs_database
        )

    def _find_principal(self, secret: str) -> Principal | None:
        if not 0 < len(secret) <= _MAX_SECRET_LENGTH:
            return None
        principals = (method.authenticate(secret) for method in self._methods)
        return next((principal for principal in principals if principal is not None), None)

    def _record_attempt(self, source: _Source) -> float:
        now = self._timer()
        with self._lock:
            attempts = self._attempts.setdefault(source, deque())
            self._attempts.move_to_end(source)
            while attempts and attempts[0] + WITHIN_SECONDS <= now:
                attempts.popleft()
            if len(attempts) >= MAX_FAILURES:
                wait = attempts[0] + WITHIN_SECONDS - now
                raise TooManyRequests(
                    f"Too many failed attempts: try again in {wait:.0f} s.",
                    reason="sign_in",
                    retry_after=wait,
                )
            attempts.append(now)
            while len(self._attempts) > MAX_PLACES:
                self._attempts.popitem(last=False)
        return now

    def _forget_attempt(self, source: _Source, attempted_at: float) -> None:
        with self._lock:
            attempts = self._attempts.get(source)
            if attempts is None or attempted_at not in attempts:
                return
            attempts.remove(attempted_at)
            if not attempts:
                del self._attempts[source]


def network_of(address: str) -> str:
    """Return the network that attempts are counted by: an IPv4 address, or an IPv6 /64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
    return str(parsed)


_ADD = text("""
INSERT INTO signed_out (session, until)
SELECT key, to_timestamp(cast(value AS double precision))
FROM json_each_text(cast(:sessions AS json))
ON CONFLICT DO NOTHING
""")
_READ = text("SELECT session, extract(epoch FROM until) FROM signed_out WHERE until > now()")
_TRIM = text("DELETE FROM signed_out WHERE until < now()")


class SignedOutStore:
    """The signed-out sessions, shared by all processes of the portal."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, sessions: Mapping[str, float]) -> None:
        """Record sessions with the Unix time at which each expires; idempotent."""
        encoded = msgspec.json.encode(sessions).decode()
        with begin(self._engine) as connection:
            connection.execute(_ADD, {"sessions": encoded})

    def read(self) -> dict[str, float]:
        """Return the signed-out sessions that have not expired yet."""
        with begin(self._engine) as connection:
            return {session: float(until) for session, until in connection.execute(_READ)}


def trim(connection: Connection) -> int:
    """Delete the sessions that have expired; return their number."""
    return connection.execute(_TRIM).rowcount


@contextmanager
def reading_as(engine: Engine, scope: TenantId | None) -> Iterator[Connection]:
    """Open a transaction limited to one tenant, or with None to all that the role may read."""
    with begin(engine) if scope is None else acting_for(engine, scope) as connection:
        yield connection
