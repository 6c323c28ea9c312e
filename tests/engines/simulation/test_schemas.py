"""Instances of JSON schemas: valid, reproducible by seed, and bounded."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from lowtide.engines.simulation.schemas import InvalidSchema, instance_of
from lowtide.engines.simulation.strings import matching

NODE = {
    "type": "object",
    "properties": {"v": {"type": "number"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["v", "kids"],
    "additionalProperties": False,
}
LIST = {
    "$defs": {
        "link": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"next": {"$ref": "#/$defs/link"}, "v": {"type": "integer"}},
                    "required": ["next", "v"],
                },
                {"type": "null"},
            ]
        }
    },
    "$ref": "#/$defs/link",
}
SCHEMAS: dict[str, Any] = {
    "true": True,
    "empty": {},
    "integer": {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    },
    "optional": {"properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}},
    "nullable": {"type": ["string", "null"], "minLength": 20, "maxLength": 22},
    "enum": {"enum": ["a", 1, None, {"b": [2]}]},
    "const": {"const": {"a": 1}},
    "recursive": NODE,
    "recursive-list": LIST,
    "recursive-optional": {"type": "object", "properties": {"t": {"$ref": "#"}}},
    "anchor": {
        "$defs": {"a": {"$anchor": "there", "type": "integer"}},
        "type": "array",
        "items": {"$ref": "#there"},
        "minItems": 1,
    },
    "pointer": {"$defs": {"a/b": {"const": 5}}, "$ref": "#/$defs/a~1b"},
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-\d{3,5}(-(?:x|y+))?$"},
    "phone": {"type": "string", "pattern": r"^\+?[1-9]\d{1,14}$"},
    "prefix": {"type": "string", "pattern": "^urn:[^:]+:", "minLength": 30, "maxLength": 40},
    "escapes": {"type": "string", "pattern": r"^(\d{4})\/\u0041.\s\S\w\W\D\x41[^a-z\]][\d_-]$"},
    "multiple": {"type": "integer", "multipleOf": 7, "exclusiveMinimum": 7, "maximum": 15},
    "cents": {"type": "number", "multipleOf": 0.01, "minimum": 0.5, "maximum": 5},
    "negative": {"type": "integer", "maximum": -5},
    "large": {"type": "integer", "minimum": 10**12},
    "between": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-6},
    "unique": {
        "type": "array",
        "items": {"enum": [1, 2, 3, 4]},
        "uniqueItems": True,
        "minItems": 4,
        "maxItems": 9,
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "string"}, {"type": "integer"}],
        "items": False,
        "minItems": 2,
    },
    "long-tuple": {"prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 4},
    "one-of": {"oneOf": [{"multipleOf": 3}, {"multipleOf": 5}], "type": "integer", "minimum": 1},
    "all-of": {
        "allOf": [
            {"properties": {"a": {"type": "number"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 4}, "b": {"const": 4}}, "required": ["b"]},
        ],
        "type": "object",
    },
    "types-shared": {"allOf": [{"type": ["number", "null"]}, {"type": "integer"}]},
    "enums-shared": {"allOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]},
    "any-of": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}}]},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 3},
    "map-names": {
        "type": "object",
        "propertyNames": {"pattern": "^k[0-9]{4}$"},
        "additionalProperties": {"type": "integer"},
        "minProperties": 2,
    },
    "map-patterns": {
        "type": "object",
        "patternProperties": {"^x-": {"type": "integer"}},
        "additionalProperties": False,
        "minProperties": 2,
    },
    "one-property": {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "minProperties": 1,
        "maxProperties": 1,
    },
    "contains": {"type": "array", "contains": {"const": 5}, "items": {"type": "integer"}},
    "not": {"not": {"type": "string"}},
    "not-positive": {"type": "integer", "not": {"minimum": 0}},
    "if": {
        "type": "object",
        "properties": {"k": {"enum": ["a", "b"]}},
        "required": ["k"],
        "if": {"properties": {"k": {"const": "a"}}},
        "then": {"required": ["x"]},
        "else": {"required": ["y"]},
    },
    "dependent": {"properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
} | {
    name: {"type": "string", "format": name}
    for name in ("date-time", "date", "email", "ipv4", "ipv6", "uuid", "uri", "duration")
}


def generate(schema: Any, seed: int = 1) -> object:
    return instance_of(schema, Random(seed))  # noqa: S311


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_instances_are_valid(schema: Any) -> None:
    validator = Draft202012Validator(schema, format_checker=FormatChecker())
    for seed in range(30):
        validator.validate(generate(schema, seed))


@pytest.mark.parametrize("name", ["recursive", "map", "pattern", "unique"])
def test_same_seed_gives_same_instance(name: str) -> None:
    instances = [generate(SCHEMAS[name], seed) for seed in range(20)]
    assert instances == [generate(SCHEMAS[name], seed) for seed in range(20)]
    assert len({str(each) for each in instances}) > 5


def test_recursive_schema_gives_finite_instances() -> None:
    instances = [str(generate(LIST, seed)) for seed in range(50)]
    assert {"None"} < set(instances)
    assert max(map(len, instances)) < 500


def test_pattern_may_have_named_group() -> None:
    assert matching("^(?<year>20)x$", Random(1)) == "20x"  # noqa: S311


INVALID: dict[str, tuple[Any, str]] = {
    "type": ({"type": "objec"}, "objec"),
    "properties": ({"properties": []}, 'not of type "object"'),
    "number": (5, "an object or a boolean"),
    "regex": ({"pattern": "("}, "regex"),
    "missing": ({"$ref": "#/$defs/no"}, "/$defs/no"),
    "cycle": ({"$ref": "#"}, "circular reference"),
    "false": (False, "false"),
    "both": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "both string and integer"),
    "look-around": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "endless": (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "too large",
    ),
    "items": ({"type": "array", "minItems": 10**9}, "too large"),
    "names": ({"type": "object", "minProperties": 10**9}, "too large"),
    "characters": ({"type": "string", "minLength": 10**9}, "1000000000"),
    "doubling": (
        {"$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}}
        | {"$ref": "#/$defs/d0"},
        "d40",
    ),
    "unsatisfiable": ({"type": "integer", "multipleOf": 10, "minimum": 11, "maximum": 19}, "no"),
    "nested-repeats": ({"type": "string", "pattern": "^((((((a{9}){9}){9}){9}){9}){9})$"}, "regex"),
}


@pytest.mark.parametrize(("schema", "reason"), INVALID.values(), ids=INVALID)
def test_schema_without_instance_is_rejected_quickly(schema: Any, reason: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidSchema, match=reason.replace("$", r"\$")):
        generate(schema, 1)
    assert time.process_time() - began < 5.0


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x", "file:///etc/hostname", "other.json"])
def test_remote_reference_is_not_fetched(address: str) -> None:
    with pytest.raises(InvalidSchema, match="retrieving it failed"):
        generate({"$ref": address}, 1)
