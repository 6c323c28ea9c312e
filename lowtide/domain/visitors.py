"""Who looks at the portal, and what they may do there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from lowtide.domain.errors import Forbidden

if TYPE_CHECKING:
    from lowtide.domain.ids import TenantId


class Role(StrEnum):
    """A viewer looks; an operator acts, too."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who signed in; `tenant` is all they see, None is every tenant.

    `name` is what the audit log calls them, `credential` what they signed in with, and never a
    secret.
    """

    name: str
    role: Role
    tenant: TenantId | None = None
    credential: str = ""

    @property
    def may_act(self) -> bool:
        """Whether buttons that change something are for this visitor."""
        return self.role is Role.OPERATOR

    def require_operator(self) -> None:
        """Raise Forbidden for a viewer."""
        if not self.may_act:
            raise Forbidden("A viewer only looks: sign in as an operator to change something.")

    def require_operator_of_all(self) -> None:
        """Raise Forbidden for a viewer, and for an operator of one tenant."""
        self.require_operator()
        if self.tenant is not None:
            raise Forbidden(
                "This is for every tenant: sign in with the operator's password, not with a key."
            )
