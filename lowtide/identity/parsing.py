"""The file of identity providers: its format, and all problems of one at once, with their lines."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from lowtide.core.ids import NAME
from lowtide.core.scopes import Role
from lowtide.core.yaml_files import Part, YamlFile, problems_of, read_text
from lowtide.identity.model import (
    ALGORITHMS,
    Issuer,
    Issuers,
    PortalClient,
    RoleRule,
    TenantRule,
    claim_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.core.yaml_files import Location, Problem


_FIXES: Final = {
    NAME: "must be the name of a tenant: up to 63 of a-z, 0-9, '.', '_' and '-', with a letter or a "
    "digit first",
}
_SECRETS_IN: Final = "set LOWTIDE_OIDC_CLIENT_SECRET"
_Tenant = Annotated[str, StringConstraints(pattern=NAME)]
_Claim = str | tuple[str, ...]


def _address(value: str) -> str:
    """Validate an address of an identity provider; raises ValueError."""
    parts = urlsplit(value)
    if parts.username is not None or parts.fragment:
        raise ValueError("must have no user and no fragment")
    if parts.scheme == "https" and parts.hostname:
        return value
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return value
    raise ValueError("must start with https://, as keys that come over plain HTTP prove nothing")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _algorithm(value: str) -> str:
    """Validate the name of a signature algorithm; raises ValueError."""
    if value not in ALGORITHMS:
        raise ValueError(f"must be one of {', '.join(ALGORITHMS)}")
    return value


_Address = Annotated[str, AfterValidator(_address)]
_Algorithm = Annotated[str, AfterValidator(_algorithm)]


class TenantPart(Part):
    """The tenant of a token."""

    name: _Tenant | None = Field(default=None, description="The tenant of every token.")
    claim: _Claim | None = Field(
        default=None, description="The claim that names the tenant, `tenant` if it is left out."
    )
    names: dict[str, _Tenant] = Field(
        default={}, description="Tenants by values of the claim; tokens without one are refused."
    )


class RolesPart(Part):
    """The role of a token, by the values of a claim."""

    claim: _Claim = Field(default="groups", description="The claim that decides.")
    viewer: tuple[str, ...] = Field(default=(), description="Values of viewers.")
    operator: tuple[str, ...] = Field(default=(), description="Values of operators.")
    admin: tuple[str, ...] = Field(default=(), description="Values of admins.")
    every_tenant: tuple[str, ...] = Field(
        default=(), description="Values of those to whom the portal shows the whole installation."
    )


class IssuerPart(Part):
    """An issuer of tokens."""

    issuer: _Address = Field(description="The claim `iss` of its tokens, exactly.")
    audience: str | tuple[str, ...] = Field(
        description="The claim `aud` of tokens for Lowtide; a token needs one of several."
    )
    jwks_url: _Address | None = Field(
        default=None, description="Address of its keys, if its discovery document does not say."
    )
    algorithms: tuple[_Algorithm, ...] = Field(
        default=ALGORITHMS, min_length=1, description="Accepted signatures."
    )
    ca_file: str = Field(default="", description="File of the certificates to trust.")
    token_file: str = Field(
        default="", description="File of a token to send when keys are read, as Kubernetes may ask."
    )
    tenant: TenantPart = Field(default=TenantPart(), description="The tenant of a token.")
    user: _Claim = Field(default="sub", description="The claim that names the user.")
    roles: RolesPart = Field(default=RolesPart(), description="The role of a token.")
    scopes: _Claim = Field(
        default="scope", description="The claim that holds scopes, as a text or a list."
    )


class PortalPart(Part):
    """The portal as a client, which people sign in to."""

    issuer: str = Field(description="One of the issuers.")
    client_id: str = Field(min_length=1, description="The client's id there.")
    scopes: tuple[str, ...] = Field(
        default=("openid", "profile", "email"), description="Scopes that it asks for."
    )


class IdentityFile(Part):
    """The file that LOWTIDE_IDENTITY names."""

    issuers: tuple[IssuerPart, ...] = Field(min_length=1, description="The trusted issuers.")
    portal: PortalPart | None = Field(
        default=None, description="Sign-in to the portal; without it, by password and API key."
    )


def read_file(path: Path) -> Issuers:
    """Read a file of issuers; raises InvalidFile."""
    return parse(read_text(path), path.name)


def parse(text: str, name: str = "identity.yaml") -> Issuers:
    """Parse the text of a file; raises InvalidFile, whose lines name the file and the line."""
    file = YamlFile.parse(text, name)
    found: list[Problem] = []
    try:
        content = IdentityFile.model_validate(file.data)
    except ValidationError as error:
        found += problems_of(error, IdentityFile, _FIXES, secrets_in=_SECRETS_IN)
    else:
        found += _contradictions(content)
        if not found and not file.repeated:
            issuers = tuple(map(_issuer, content.issuers))
            return Issuers(issuers, _portal(content.portal, issuers))
    raise file.refusal((location, _text(location, message)) for location, message in found)


def _contradictions(content: IdentityFile) -> Iterator[Problem]:
    seen: set[str] = set()
    for position, part in enumerate(content.issuers):
        if part.issuer in seen:
            yield ("issuers", position, "issuer"), "is listed twice: remove one"
        seen.add(part.issuer)
        if not all(_audiences(part)) or not _audiences(part):
            yield ("issuers", position, "audience"), "must not be empty: any token would do"
        tenant = part.tenant
        if tenant.name is not None and (tenant.claim is not None or tenant.names):
            yield ("issuers", position, "tenant"), "has a name, so that claim and names say nothing"
    if content.portal is not None and content.portal.issuer not in seen:
        yield ("portal", "issuer"), "must be one of the issuers"
    if content.portal is not None and "openid" not in content.portal.scopes:
        yield ("portal", "scopes"), "must include openid"


def _portal(part: PortalPart | None, issuers: tuple[Issuer, ...]) -> PortalClient | None:
    if part is None:
        return None
    (issuer,) = (each for each in issuers if each.url == part.issuer)
    return PortalClient(issuer, part.client_id, part.scopes)


def _audiences(part: IssuerPart) -> tuple[str, ...]:
    return (part.audience,) if isinstance(part.audience, str) else part.audience


def _issuer(part: IssuerPart) -> Issuer:
    members = {
        Role.VIEWER: part.roles.viewer,
        Role.OPERATOR: part.roles.operator,
        Role.ADMIN: part.roles.admin,
    }
    return Issuer(
        url=part.issuer,
        audiences=_audiences(part),
        jwks_url=part.jwks_url or "",
        algorithms=part.algorithms,
        ca_file=part.ca_file,
        token_file=part.token_file,
        tenant=TenantRule(
            part.tenant.name or "",
            claim_of("tenant" if part.tenant.claim is None else part.tenant.claim),
            part.tenant.names,
        ),
        user=claim_of(part.user),
        roles=RoleRule(
            claim_of(part.roles.claim),
            {role: frozenset(values) for role, values in members.items()},
            frozenset(part.roles.every_tenant),
        ),
        scopes=claim_of(part.scopes),
    )


def _text(location: Location, message: str) -> str:
    parts = [str(part) for part in location if part not in {"str", "tuple[str, ...]"}]
    if len(parts) > 1 and parts[0] == "issuers":
        parts = [f"issuer {int(parts[1]) + 1}", *parts[2:]]
        return f"{': '.join([parts[0], '.'.join(parts[1:])]) if parts[1:] else parts[0]}: {message}"
    return f"{'.'.join(parts)}: {message}" if parts else message
