"""Issuers of tokens, and the meaning of their claims: tenant, user, role and scopes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lowtide.core.scopes import SCOPES_OF_ROLES, Role, scopes_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowtide.core.scopes import Scopes


Claims = dict[str, Any]
"""The claims of a token whose signature is verified."""

ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""Signatures with a private key: with a shared secret, each verifier could sign as well."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The place of a claim: its name, or the names that lead to it."""

    path: tuple[str, ...]

    def values(self, claims: Claims) -> list[str]:
        """Return its texts: of a list each, else the one that it is."""
        found: object = claims
        for name in self.path:
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, str):
            return [found] if found else []
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


@dataclass(frozen=True, slots=True)
class TenantRule:
    """The tenant of a token: `name`, or else the value of a claim, by `names` if it has any."""

    name: str = ""
    claim: Claim = Claim(("tenant",))
    names: Mapping[str, str] = field(default_factory=dict)

    def tenant(self, claims: Claims) -> str | None:
        """Return the name of the tenant; None if the token names none or several."""
        if self.name:
            return self.name
        values = self.claim.values(claims)
        if self.names:
            values = [self.names[value] for value in values if value in self.names]
        found = set(values)
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class RoleRule:
    """The role of a token: the highest one of which the claim has a value."""

    claim: Claim = Claim(("groups",))
    members: Mapping[Role, frozenset[str]] = field(default_factory=dict)
    every_tenant: frozenset[str] = frozenset()

    def sees_every_tenant(self, claims: Claims) -> bool:
        """Return whether the portal shows the whole installation."""
        return not self.every_tenant.isdisjoint(self.claim.values(claims))

    def role(self, claims: Claims) -> Role | None:
        """Return the role; None without one."""
        values = set(self.claim.values(claims))
        held = [role for role in Role if values & self.members.get(role, frozenset())]
        return held[-1] if held else None


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer of tokens: `url` is the exact claim `iss`, `audiences` are those meant for us.

    Without `jwks_url`, the discovery document of the issuer names it. `ca_file` holds the
    certificates to trust, `token_file` the token to send: Kubernetes may ask for both.
    """

    url: str
    audiences: tuple[str, ...]
    jwks_url: str = ""
    algorithms: tuple[str, ...] = ALGORITHMS
    ca_file: str = ""
    token_file: str = ""
    tenant: TenantRule = TenantRule()
    user: Claim = Claim(("sub",))
    roles: RoleRule = RoleRule()
    scopes: Claim = Claim(("scope",))

    @property
    def mapping(self) -> str:
        """The rules for tenants and roles as one text, the same in every process."""
        roles = self.roles
        members = [(role.value, sorted(roles.members.get(role, ()))) for role in Role]
        return repr(
            (
                self.tenant.name,
                self.tenant.claim.path,
                sorted(self.tenant.names.items()),
                roles.claim.path,
                members,
                sorted(roles.every_tenant),
            )
        )

    def identity(self, claims: Claims) -> Identity:
        """Return who a token speaks for.

        It never does more than its role: its scopes narrow what the role allows.
        """
        role = self.roles.role(claims)
        # Scopes as a text have spaces between them: RFC 8693, section 4.2.
        named = [scope for value in self.scopes.values(claims) for scope in value.split()]
        scopes = scopes_of(named)
        if role is not None:
            allowed = SCOPES_OF_ROLES[role]
            scopes = allowed & scopes if scopes else allowed
        names = self.user.values(claims) or [str(claims.get("sub", ""))]
        return Identity(
            issuer=self.url,
            tenant=self.tenant.tenant(claims),
            user=" ".join(names),
            role=role,
            scopes=scopes,
            sees_every_tenant=self.roles.sees_every_tenant(claims),
        )


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token speaks for; `tenant` and `role` are None if it says nothing about them.

    In the portal, those who see every tenant are of none.
    """

    issuer: str
    tenant: str | None
    user: str
    role: Role | None
    scopes: Scopes
    sees_every_tenant: bool = False


@dataclass(frozen=True, slots=True)
class PortalClient:
    """The portal as a client of an issuer; `scopes` are those that it asks for."""

    issuer: Issuer
    client_id: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Issuers:
    """The issuers that are trusted, and the one at which people sign in to the portal, if any."""

    all: tuple[Issuer, ...] = ()
    portal: PortalClient | None = None

    def get(self, url: str) -> Issuer | None:
        """Return the issuer with exactly this URL."""
        return next((issuer for issuer in self.all if issuer.url == url), None)


def claim_of(place: str | Sequence[str]) -> Claim:
    """Return the claim at a place as the file has it: a name, or a list of names."""
    return Claim((place,) if isinstance(place, str) else tuple(place))
