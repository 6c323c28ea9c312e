"""Flattened schemas: references followed, `allOf` and a chosen branch merged into one object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


Schema = dict[str, Any]
_MOST_STEPS: Final = 200
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")


class Impossible(ValueError):
    """A schema that contradicts itself, or has a reference that cannot be resolved."""


def merged(first: object, second: object) -> Schema:
    """Return a schema for values valid against both, as far as one object can express it."""
    if first is False or second is False:
        raise Impossible("a part of it is false")
    one = first if isinstance(first, dict) else {}
    other = second if isinstance(second, dict) else {}
    both = one | other
    for key in one.keys() & other.keys():
        if one[key] != other[key]:
            both[key] = _RULES.get(key, _last)(one[key], other[key])
    return both


def resolve(root: object, reference: object) -> object:
    """Return the target of a reference within the schema, a JSON pointer or an anchor."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise Impossible(f"only references within the schema are followed, not {reference!r}")
    if reference[1:2] not in {"", "/"}:
        return _anchored(root, reference[1:])
    at = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        try:
            at = _item(at, name)
        except (LookupError, ValueError) as error:
            raise Impossible(f"{reference} does not exist") from error
    return at


def _item(at: object, name: str) -> object:
    if isinstance(at, list):
        return at[int(name)]
    return at[name] if isinstance(at, dict) else None


def _anchored(root: object, name: str) -> object:
    waiting = [root]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            if name in (at.get("$anchor"), at.get("$dynamicAnchor")):
                return at
            waiting.extend(at.values())
        elif isinstance(at, list):
            waiting.extend(at)
    raise Impossible(f"#{name} does not exist")


def flat(root: object, schema: object, choose: Callable[[list[object]], object]) -> Schema:
    """Return the schema with references followed, and branches reduced to the one chosen."""
    result: Schema = {}
    waiting = [schema]
    for _ in range(_MOST_STEPS):
        if not waiting:
            return result
        part = waiting.pop(0)
        if isinstance(part, dict):
            part = dict(part)
            waiting.extend(resolve(root, part.pop(key)) for key in _REFERENCES if key in part)
            waiting.extend(part.pop("allOf", ()))
            waiting.extend(choose(part.pop(key)) for key in ("anyOf", "oneOf") if part.get(key))
            waiting.extend(_conditional(part, choose))
        result = merged(result, part)
    raise Impossible("circular reference")


def _conditional(part: Schema, choose: Callable[[list[object]], object]) -> list[object]:
    condition, then, other = (part.pop(key, True) for key in ("if", "then", "else"))
    if condition is True:
        return [then]
    return [choose([{"allOf": [condition, then]}, other])]


def _last(_: Any, other: Any) -> Any:
    return other


def _types(one: Any, other: Any) -> Any:
    first, second = (given if isinstance(given, list) else [given] for given in (one, other))
    shared = [
        "integer" if "integer" in (kind, twin) else kind
        for kind in first
        for twin in second
        if kind == twin or {kind, twin} == {"integer", "number"}
    ]
    if not shared:
        raise Impossible(f"no value is both {one} and {other}")
    return shared


def _shared(one: Any, other: Any) -> Any:
    both = [value for value in one if value in other]
    if not both:
        raise Impossible("two enums have no value in common")
    return both


def _properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> Any:
    return {**one, **other} | {
        name: {"allOf": [one[name], other[name]]} for name in one.keys() & other.keys()
    }


def _union(one: Any, other: Any) -> Any:
    return list(dict.fromkeys([*one, *other]))


def _both(one: Any, other: Any) -> Any:
    return {"allOf": [one, other]}


_RULES: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "type": _types,
    "enum": _shared,
    "properties": _properties,
    "required": _union,
    "items": _both,
    "additionalProperties": _both,
    "contains": _both,
    "propertyNames": _both,
    "minimum": max,
    "exclusiveMinimum": max,
    "minLength": max,
    "minItems": max,
    "minProperties": max,
    "maximum": min,
    "exclusiveMaximum": min,
    "maxLength": min,
    "maxItems": min,
    "maxProperties": min,
}
