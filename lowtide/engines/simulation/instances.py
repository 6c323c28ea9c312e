"""Values generated from a JSON schema; some constraints are left to a validator."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lowtide.engines.simulation.merging import Impossible, flat, resolve
from lowtide.engines.simulation.strings import string

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from lowtide.engines.simulation.merging import Schema


_MAX_NODES: Final = 5000
_DEEP: Final = 4
_TRIES: Final = 20
_INFINITE: Final = math.inf
_WIDEST: Final = 2**53
_NAMES: Final = ("tide", "shore", "wave", "sand", "moon", "reef", "gull", "kelp")
_SIMPLE: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
_HINTS: Final[Mapping[str, str]] = {
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "minProperties": "object",
    "items": "array",
    "prefixItems": "array",
    "minItems": "array",
    "contains": "array",
    "minimum": "number",
    "maximum": "number",
    "exclusiveMinimum": "number",
    "exclusiveMaximum": "number",
    "multipleOf": "number",
}
"""Types that keywords imply in schemas without a type."""


class Exhausted(Exception):
    """A value that would be larger than any answer."""


class Instances:
    """Makes one value of a schema; attempts vary the optional properties and the depth."""

    def __init__(self, schema: object, random: Random, attempt: int = 0) -> None:
        self._root = schema
        self._random = random
        # The first attempt is the most natural one, with most optional properties.
        self._optional = (0.8, 0.0, 1.0, 0.5)[attempt % 4]
        self._deep = _DEEP if attempt % 2 == 0 else 1
        self._wild = attempt >= 4
        self._nodes = 0
        self._heights: dict[str, float] = {}

    def make(self) -> object:
        """Return a value; raises Impossible or Exhausted."""
        return self._value(self._root, 0)

    def _value(self, schema: object, depth: int) -> object:
        self._step()
        part = flat(self._root, schema, partial(self._choose, depth))
        if "const" in part:
            return part["const"]
        if "enum" in part:
            return self._random.choice(part["enum"])
        return self._makers[self._type(part, depth)](self, part, depth)

    def _step(self) -> None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise Exhausted

    def _choose(self, depth: int, branches: list[object]) -> object:
        """Return a branch; below a certain depth the shallowest, so that recursion ends."""
        if depth < self._deep:
            feasible = [
                branch for branch in branches if self._height(branch, frozenset()) < _INFINITE
            ]
            return self._random.choice(feasible or branches)
        return min(branches, key=lambda branch: self._height(branch, frozenset()))

    def _type(self, part: Schema, depth: int) -> str:
        declared = part.get("type")
        if declared is None:
            hint = next((_HINTS[key] for key in part if key in _HINTS), None)
            return hint or (self._random.choice(_SIMPLE) if self._wild else "string")
        kinds = declared if isinstance(declared, list) else [declared]
        if depth >= self._deep:
            return str(min(kinds, key=_SIMPLE.index))
        return str(self._random.choice([kind for kind in kinds if kind != "null"] or kinds))

    def _height(self, schema: object, visited: frozenset[str]) -> float:
        """Return the levels of the smallest value; infinite if it would contain itself."""
        self._step()
        if not isinstance(schema, dict):
            return 0 if schema is not False else _INFINITE
        if "const" in schema or "enum" in schema:
            return 0
        levels = [0.0]
        if isinstance(reference := schema.get("$ref"), str):
            levels.append(self._height_of(reference, visited))
        levels += [self._height(each, visited) for each in schema.get("allOf", ())]
        for key in ("anyOf", "oneOf"):
            if branches := schema.get(key):
                levels.append(min(self._height(each, visited) for each in branches))
        levels += [1 + self._height(each, visited) for each in _required_schemas(schema)]
        return max(levels)

    def _height_of(self, reference: str, visited: frozenset[str]) -> float:
        if reference in self._heights:
            return self._heights[reference]
        if reference in visited:
            return _INFINITE
        height = self._height(resolve(self._root, reference), visited | {reference})
        # Infinity may hold for this path only, so it is not cached.
        if height < _INFINITE:
            self._heights[reference] = height
        return height

    def _object(self, part: Schema, depth: int) -> object:
        properties: Mapping[str, object] = part.get("properties", {})
        required = part.get("required", [])
        names = [
            name
            for name in properties
            if name in required or self._includes_optional(properties[name], depth)
        ]
        names = names[: part.get("maxProperties", len(names))]
        names += [name for name in required if name not in names]
        names += self._further_names(part, names)
        return {name: self._value(_property(part, name), depth + 1) for name in names}

    def _includes_optional(self, schema: object, depth: int) -> bool:
        if depth >= self._deep or self._random.random() >= self._optional:
            return False
        return self._height(schema, frozenset()) < _INFINITE

    def _further_names(self, part: Schema, existing: list[str]) -> list[str]:
        """Return names beyond the known ones: as few as allowed, or a few for a plain map."""
        is_map = isinstance(part.get("additionalProperties"), dict) and not existing
        missing = part.get("minProperties", 0) - len(existing)
        if is_map and missing <= 0 and self._includes_optional(part["additionalProperties"], 0):
            missing = min(2, part.get("maxProperties", 2))
        if missing > _MAX_NODES:
            raise Exhausted
        names: list[str] = []
        for number in range(max(0, missing) + _TRIES):
            if len(names) >= missing:
                break
            self._step()
            name = self._name(part, number)
            if name not in existing and name not in names:
                names.append(name)
        return names

    def _name(self, part: Schema, number: int) -> str:
        rule = part.get("propertyNames")
        if rule is None and part.get("additionalProperties") is False:
            rule = next(({"pattern": each} for each in part.get("patternProperties", ())), None)
        if isinstance(rule, dict):
            return str(self._value({"type": "string"} | rule, self._deep))
        return _NAMES[number % len(_NAMES)] + (str(number) if number >= len(_NAMES) else "")

    def _array(self, part: Schema, depth: int) -> object:
        prefix = part.get("prefixItems", [])
        items = part.get("items", True)
        # Up to draft 7, a list in `items` means what `prefixItems` means now.
        if isinstance(items, list):
            prefix, items = items, part.get("additionalItems", True)
        length = self._length(part, prefix, items, depth)
        parts = [*prefix[:length], *[items] * (length - len(prefix))]
        if (contained := part.get("contains")) is not None:
            for index in range(min(part.get("minContains", 1), length)):
                parts[-1 - index] = {"allOf": [parts[-1 - index], contained]}
        values: list[object] = []
        for schema in parts:
            values.append(
                self._item(schema, values if part.get("uniqueItems") is True else [], depth)
            )
        return values

    def _length(self, part: Schema, prefix: list[object], items: object, depth: int) -> int:
        minimum = max(part.get("minItems", 0), part.get("minContains", 1) * ("contains" in part))
        maximum = part.get("maxItems", _INFINITE)
        if items is False:
            maximum = min(maximum, len(prefix))
        natural = len(prefix) or self._random.randint(1, 3)
        if depth >= self._deep or self._height(items, frozenset()) == _INFINITE:
            natural = len(prefix)
        if minimum > _MAX_NODES:
            raise Exhausted
        return int(min(maximum, max(minimum, natural)))

    def _item(self, schema: object, others: list[object], depth: int) -> object:
        for _ in range(_TRIES):
            value = self._value(schema, depth + 1)
            # In Python 1, 1.0 and True are equal; in JSON only the first two are.
            if not any(value == other and type(value) is type(other) for other in others):
                return value
        raise Impossible("too few distinct values for unique items")

    def _string(self, part: Schema, _: int) -> object:
        return string(part, self._random)

    def _integer(self, part: Schema, _: int) -> object:
        low, high = _bounds(part, integer=True, wild=self._wild)
        step = part.get("multipleOf", 1)
        step = step if isinstance(step, int) or float(step).is_integer() else 1
        first, last = math.ceil(low / step), math.floor(high / step)
        if first > last:
            raise Impossible("no integer is within its bounds")
        return int(self._random.randint(first, last) * int(step))

    def _number(self, part: Schema, depth: int) -> object:
        low, high = _bounds(part, wild=self._wild)
        step = part.get("multipleOf")
        if step is None:
            if low > high:
                raise Impossible("no number is within its bounds")
            number = self._random.uniform(low, high)
            return shorter if low <= (shorter := round(number, 2)) <= high else number
        if float(step).is_integer():
            return self._integer(part, depth)
        first, last = math.ceil(low / step), math.floor(high / step)
        for _ in range(_TRIES):
            if first > last:
                break
            # Validators divide, so the floating-point quotient must be a whole number.
            number = round(self._random.randint(first, last) * step, 12)
            if (number / step).is_integer() and low <= number <= high:
                return number
        raise Impossible(f"no multiple of {step} is within its bounds")

    def _boolean(self, _: Schema, __: int) -> object:
        return self._random.random() < 0.5

    def _null(self, _: Schema, __: int) -> object:
        return None

    _makers: Final[Mapping[str, Callable[[Instances, Schema, int], object]]] = {
        "object": _object,
        "array": _array,
        "string": _string,
        "integer": _integer,
        "number": _number,
        "boolean": _boolean,
        "null": _null,
    }


def _required_schemas(schema: Schema) -> list[object]:
    """Return the schemas of the parts that a value must have."""
    declared = schema.get("type")
    kinds = declared if isinstance(declared, list) else [declared]
    if "object" not in kinds and "array" not in kinds and declared is not None:
        return []
    if any(kind not in {"object", "array", None} for kind in kinds):
        return []
    schemas = [_property(schema, name) for name in schema.get("required", ())]
    minimum = schema.get("minItems", 0)
    prefix = schema.get("prefixItems", [])
    schemas += prefix[:minimum]
    if minimum > len(prefix):
        schemas.append(schema.get("items", True))
    return schemas


def _property(part: Schema, name: str) -> object:
    properties = part.get("properties", {})
    if name in properties:
        return properties[name]
    additional = part.get("additionalProperties", True)
    if additional is False and "patternProperties" in part:
        return next(iter(part["patternProperties"].values()))
    return additional


def _bounds(part: Schema, *, integer: bool = False, wild: bool = False) -> tuple[float, float]:
    """Return the lowest and highest number; a half-open range gets a natural other end."""
    lows = [part[key] for key in ("minimum", "exclusiveMinimum") if _is_number(part.get(key))]
    highs = [part[key] for key in ("maximum", "exclusiveMaximum") if _is_number(part.get(key))]
    low: float = max(lows) if lows else min(0, *highs, 0)
    span = max(100, 20 * part.get("multipleOf", 1))
    high: float = min(highs) if highs else low + span
    if not lows and (wild or low == high):
        low = high - 2 * span
    if _excludes(part, "Minimum", low):
        low = low + 1 if integer and float(low).is_integer() else math.nextafter(low, math.inf)
    if _excludes(part, "Maximum", high):
        high = high - 1 if integer and float(high).is_integer() else math.nextafter(high, -math.inf)
    return max(low, -_WIDEST), min(high, _WIDEST)


def _excludes(part: Schema, end: str, bound: float) -> bool:
    exclusive: Any = part.get(f"exclusive{end}")
    return exclusive is True if isinstance(exclusive, bool) else exclusive == bound


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
