"""Knowing who looks at the portal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from lowtide.domain.visitors import Visitor


class SignIn(Protocol):
    """One way to sign in with something only the visitor knows."""

    def visitor(self, secret: str) -> Visitor | None:
        """Return who knows this secret; None when it is not of this kind."""
        ...

    def holding(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return those of these credentials that still open something this way."""
        ...
