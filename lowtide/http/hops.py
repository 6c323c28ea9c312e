"""Headers of a proxy: those that are for one connection alone go no further (RFC 9110, 7.6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


_HOP_BY_HOP: Final = frozenset(
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
     "trailer", "transfer-encoding", "upgrade", "expect"]
)  # fmt: skip


def end_to_end(headers: Iterable[tuple[str, str]], connection: str) -> list[tuple[str, str]]:
    """Return the headers that a proxy passes on; `connection` names more that it does not."""
    left_out = _HOP_BY_HOP.union(name.strip().lower() for name in connection.split(","))
    return [(name, value) for name, value in headers if name.lower() not in left_out]
