"""Scopes, what a key or a token may do with the API, and roles of people."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Scope(StrEnum):
    """A right; `admin` includes every other one. Writing does not include reading."""

    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    BATCHES_READ = "batches:read"
    BATCHES_WRITE = "batches:write"
    DEAD_LETTERS_WRITE = "dead_letters:write"
    ADMIN = "admin"


Scopes = frozenset[Scope]
EVERY_SCOPE: Final[Scopes] = frozenset(Scope)
READING: Final[Scopes] = frozenset({Scope.FILES_READ, Scope.BATCHES_READ})
"""What a viewer needs."""


class Role(StrEnum):
    """The role of a principal: a viewer reads, an operator also acts, an admin also administers.

    To administer is to change tenants, keys and buckets.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


SCOPES_OF_ROLES: Final[Mapping[Role, Scopes]] = {
    Role.VIEWER: READING,
    Role.OPERATOR: EVERY_SCOPE - {Scope.ADMIN},
    Role.ADMIN: EVERY_SCOPE,
}


def scopes_of(names: Iterable[str] | None) -> Scopes:
    """Return the scopes with these names, those that `admin` includes too; None stands for all.

    Unknown names are left out: a token may carry those of other services.
    """
    if names is None:
        return EVERY_SCOPE
    found = frozenset(Scope(name) for name in names if name in EVERY_SCOPE)
    return EVERY_SCOPE if Scope.ADMIN in found else found


def check_scopes(names: Iterable[str]) -> tuple[Scope, ...]:
    """Return the scopes with these names, in their order; raises InvalidRequest for another name."""
    wanted = set(names)
    unknown = sorted(wanted.difference(Scope))
    if unknown:
        raise InvalidRequest(
            f"Unknown scope {unknown[0][:100]!r}: use {', '.join(Scope)}.", param="scope"
        )
    return tuple(scope for scope in Scope if scope in wanted)
