"""Search for batches, files and requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.search.model import MAX_MATCHES, Kind, SearchResult, parse_query

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lowtide.core.ids import TenantId
    from lowtide.search.model import Match
    from lowtide.search.store import SearchStore


class Search:
    """Find batches, files and requests by id, custom_id, user or metadata value."""

    def __init__(self, store: SearchStore) -> None:
        self._store = store

    def find(self, scope: TenantId | None, text: str, *, limit: int = MAX_MATCHES) -> SearchResult:
        """Return up to `limit` matches of each kind, of one tenant or with None of all.

        Exact matches come first. Raises InvalidRequest if the text is too short or too long.
        """
        matches = self._store.find(scope, parse_query(text), limit=limit + 1)
        shown: list[Match] = []
        more = set()
        for kind in Kind:
            of_kind = _without_repeats(match for match in matches if match.kind is kind)
            shown += of_kind[:limit]
            if len(of_kind) > limit:
                more.add(kind)
        return SearchResult(tuple(shown), frozenset(more))


def _without_repeats(matches: Iterable[Match]) -> list[Match]:
    """Return matches with exact ones first, each thing once: by its id, if that matched."""
    found: dict[str, Match] = {}
    for match in sorted(matches, key=lambda match: not match.is_exact):
        found.setdefault(match.id, match)
    return list(found.values())
