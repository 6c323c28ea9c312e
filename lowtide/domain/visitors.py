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

    `name` is what the audit log calls them.
    """

    name: str
    role: Role
    tenant: TenantId | None = None

    @property
    def may_act(self) -> bool:
        """Whether buttons that change something are for this visitor."""
        return self.role is Role.OPERATOR

    def require_operator(self) -> None:
        """Raise Forbidden for a viewer."""
        if not self.may_act:
            raise Forbidden("A viewer only looks: sign in as an operator to change something.")
