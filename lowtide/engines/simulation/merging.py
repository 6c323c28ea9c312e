"""Flattened schemas: references followed, `allOf` and a chosen branch merged into one object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


Schema = dict[str, Any]
_MAX_STEPS: Final = 200
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")


class Impossible(ValueError):
    """A schema that contradicts itself, or has a reference that cannot be resolved."""


def merged(first: object, second: object) -> Schema:
    """Return a schema for values valid against both, as far as one object can express it."""
    if first is False or second is False:
        raise Impossible("a part of it is false")
    base = first if isinstance(first, dict) else {}
    overlay = second if isinstance(second, dict) else {}
    both = base | overlay
    for key in base.keys() & overlay.keys():
        if base[key] != overlay[key]:
            both[key] = _RULES.get(key, _last)(base[key], overlay[key])
    return both


def resolve(root: object, reference: object) -> object:
    """Return the target of a reference within the schema, a JSON pointer or an anchor."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise Impossible(f"only references within the schema are followed, not {reference!r}")
    if reference[1:2] not in {"", "/"}:
        return _find_anchor(root, reference[1:])
    node = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        try:
            node = _item(node, name)
        except (LookupError, ValueError) as error:
            raise Impossible(f"{reference} does not exist") from error
    return node


def _item(node: object, name: str) -> object:
    if isinstance(node, list):
        return node[int(name)]
    return node[name] if isinstance(node, dict) else None


def _find_anchor(root: object, name: str) -> object:
    pending = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if name in (node.get("$anchor"), node.get("$dynamicAnchor")):
                return node
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
    raise Impossible(f"#{name} does not exist")


def flat(root: object, schema: object, choose: Callable[[list[object]], object]) -> Schema:
    """Return the schema with references followed, and branches reduced to the one chosen."""
    result: Schema = {}
    pending = [schema]
    for _ in range(_MAX_STEPS):
        if not pending:
            return result
        part = pending.pop(0)
        if isinstance(part, dict):
            part = dict(part)
            pending.extend(resolve(root, part.pop(key)) for key in _REFERENCES if key in part)
            pending.extend(part.pop("allOf", ()))
            pending.extend(choose(part.pop(key)) for key in ("anyOf", "oneOf") if part.get(key))
            pending.extend(_conditional(part, choose))
        result = merged(result, part)
    raise Impossible("circular reference")


def _conditional(part: Schema, choose: Callable[[list[object]], object]) -> list[object]:
    condition, consequent, alternative = (part.pop(key, True) for key in ("if", "then", "else"))
    if condition is True:
        return [consequent]
    return [choose([{"allOf": [condition, consequent]}, alternative])]


def _last(_: Any, other: Any) -> Any:
    return other


def _types(first: Any, second: Any) -> Any:
    first_types, second_types = (
        value if isinstance(value, list) else [value] for value in (first, second)
    )
    shared = [
        "integer" if "integer" in (kind, other) else kind
        for kind in first_types
        for other in second_types
        if kind == other or {kind, other} == {"integer", "number"}
    ]
    if not shared:
        raise Impossible(f"no value is both {first} and {second}")
    return shared


def _common_values(first: Any, second: Any) -> Any:
    both = [value for value in first if value in second]
    if not both:
        raise Impossible("two enums have no value in common")
    return both


def _properties(first: Mapping[str, Any], second: Mapping[str, Any]) -> Any:
    return {**first, **second} | {
        name: {"allOf": [first[name], second[name]]} for name in first.keys() & second.keys()
    }


def _union(first: Any, second: Any) -> Any:
    return list(dict.fromkeys([*first, *second]))


def _both(first: Any, second: Any) -> Any:
    return {"allOf": [first, second]}


_RULES: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "type": _types,
    "enum": _common_values,
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
