"""Answers of several cells as one. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


Answer = dict[str, Any]
"""A decoded JSON object."""


class Page(msgspec.Struct):
    """A page of a list, whose objects are passed on as they are."""

    data: list[msgspec.Raw] = msgspec.field(default_factory=list)
    has_more: bool = False


class _Listed(msgspec.Struct):
    id: str


class _Orderable(Protocol):
    """A position in a list."""

    def __lt__(self, other: Any, /) -> bool: ...


def merged_pages(
    pages: Sequence[Page],
    position: Callable[[str], _Orderable | None],
    limit: int,
    *,
    newest_first: bool = True,
) -> Answer:
    """Return the first `limit` objects of sorted pages, each of up to `limit`, by their ids' positions.

    Exact: what a page leaves out comes after `limit` objects of its own. An object that two cells have,
    as one of them is being evacuated, is listed once.
    """
    objects: dict[Any, tuple[str, msgspec.Raw]] = {}
    for page in pages:
        for raw in page.data:
            id_ = msgspec.json.decode(raw, type=_Listed).id
            place = position(id_)
            if place is not None:
                objects.setdefault(place, (id_, raw))
    shown = [objects[place] for place in sorted(objects, reverse=newest_first)]
    return _page(shown, limit, has_more=any(page.has_more for page in pages))


def joined_pages(pages: Sequence[Page], limit: int) -> Answer:
    """Return the first `limit` objects of lists that follow each other.

    Of each, `pages` has the first `limit` objects.
    """
    shown: list[tuple[str, msgspec.Raw]] = []
    for page in pages:
        shown += [(msgspec.json.decode(raw, type=_Listed).id, raw) for raw in page.data]
        if page.has_more:
            break
    return _page(shown, limit, has_more=any(page.has_more for page in pages))


def _page(objects: Sequence[tuple[str, msgspec.Raw]], limit: int, *, has_more: bool) -> Answer:
    shown = objects[:limit]
    return {
        "object": "list",
        "data": [raw for _, raw in shown],
        "first_id": shown[0][0] if shown else None,
        "last_id": shown[-1][0] if shown else None,
        "has_more": len(objects) > limit or has_more,
    }


def merged_models(answers: Sequence[Answer]) -> Answer:
    """Return each model once, with its workers in all cells."""
    models: dict[str, Answer] = {}
    for answer in answers:
        for model in answer["data"]:
            known = models.setdefault(model["id"], model)
            if known is not model:
                known["created"] = min(known["created"], model["created"])
                known["x_lowtide"]["workers"] += model["x_lowtide"]["workers"]
    return {**answers[0], "data": list(models.values())}


_LIMITS: Final = (
    "requests_per_minute",
    "active_batches",
    "unfinished_requests",
    "running_requests",
    "enqueued_tokens",
    "tokens_per_day",
    "spend_per_month",
)
_MONTH: Final = ("requests", "input_tokens", "output_tokens")
_COST_NAMES: Final = ("currency",)


def merged_usage(answers: Sequence[Answer]) -> Answer:
    """Return the use of all cells; each has limits of its own, which add up."""
    total = answers[0]
    for answer in answers[1:]:
        for name in _LIMITS:
            total[name] = {
                key: _sum_or_none(total[name][key], answer[name][key]) for key in ("used", "limit")
            }
        month = total["month"]
        for name in _MONTH:
            month[name] += answer["month"][name]
        month["costs"] = _merged_costs([*month["costs"], *answer["month"]["costs"]])
        total["paused_pools"] += answer["paused_pools"]
    return total


def _sum_or_none(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _merged_costs(costs: Sequence[Answer]) -> list[Answer]:
    by_currency: dict[str, Answer] = {}
    for cost in costs:
        known = by_currency.setdefault(cost["currency"], cost)
        if known is not cost:
            for name, value in cost.items():
                if name not in _COST_NAMES and value is not None:
                    known[name] = (known[name] or 0) + value
    return list(by_currency.values())


def merged_search(answers: Sequence[Answer], limit: int) -> Answer:
    """Return the matches of all cells by kind, exact ones first, up to `limit` of each kind."""
    kinds: dict[str, list[Answer]] = {"batch": [], "file": [], "request": []}
    seen: set[tuple[Any, ...]] = set()
    for answer in answers:
        for match in answer["data"]:
            key = match["kind"], match["id"], match["line"]
            if key not in seen:
                seen.add(key)
                kinds[match["kind"]].append(match)
    cut = [kind for kind, matches in kinds.items() if len(matches) > limit]
    more = {kind for answer in answers for kind in answer["more"]} | set(cut)
    data = [
        match
        for matches in kinds.values()
        for match in sorted(matches, key=lambda match: not match["exact"])[:limit]
    ]
    return {**answers[0], "data": data, "more": [kind for kind in kinds if kind in more]}


def merged_summary(answers: Sequence[Answer]) -> Answer:
    """Return the counts of dead letters by error, the most frequent first."""
    groups: dict[tuple[Any, Any], Answer] = {}
    for answer in answers:
        for group in answer["groups"]:
            known = groups.setdefault((group["error_code"], group["error_message"]), group)
            if known is not group:
                known["letters"] += group["letters"]
    return {
        **answers[0],
        "total": sum(answer["total"] for answer in answers),
        "capped": any(answer["capped"] for answer in answers),
        "groups": sorted(groups.values(), key=lambda group: -int(group["letters"])),
    }


def merged_changes(answers: Sequence[Answer]) -> Answer:
    """Return the sum of changes of dead letters, and all batches that they made."""
    total: Answer = dict(answers[0])
    for name in ("changed", "unchanged", "remaining"):
        total[name] = sum(answer[name] for answer in answers)
    if "batches" in total:
        total["batches"] = [batch for answer in answers for batch in answer["batches"]]
    return total


MERGES: Final[Mapping[str, Callable[[Sequence[Answer]], Answer]]] = {
    "models": merged_models,
    "usage": merged_usage,
    "summary": merged_summary,
}
"""The merges of answers without parameters."""
