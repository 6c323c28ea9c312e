"""An instance of a JSON schema: made up by our own rules, checked by jsonschema-rs."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from jsonschema_rs import ReferencingError, ValidationError, validator_for

from lowtide.engines.simulation.instances import Exhausted, Instances
from lowtide.engines.simulation.merging import Impossible

if TYPE_CHECKING:
    from random import Random

    from jsonschema_rs import Validator

_TRIES: Final = 24


class InvalidSchema(ValueError):
    """It is no JSON schema, or nothing was found that is valid against it."""


def instance_of(schema: object, random: Random) -> object:
    """Return a value that is valid against the schema; raises InvalidSchema."""
    if not isinstance(schema, dict | bool):
        raise InvalidSchema("a schema is an object or a boolean")
    validator, read = _read(json.dumps(schema, sort_keys=True))
    reason = "no instance of it was found"
    for attempt in range(_TRIES):
        try:
            made = Instances(read, random, attempt).make()
        except Impossible as error:
            reason = f"no instance of it was found: {error}"
            continue
        except (Exhausted, RecursionError):
            if attempt:
                raise InvalidSchema("its instances are too large") from None
            continue
        # A keyword's value that its meta-schema takes and the rules for making values do not.
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"no instance of it was found: {error}"
            continue
        if validator.is_valid(made):
            return made
    raise InvalidSchema(reason)


@lru_cache(maxsize=64)
def _read(text: str) -> tuple[Validator, object]:
    """Return a schema with its validator; a batch's requests often share one."""
    try:
        # A request's schema never makes the worker fetch or open something.
        validator = validator_for(json.loads(text), offline=True)
    except (ValidationError, ReferencingError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise InvalidSchema(first) from error
    return validator, json.loads(text, parse_float=_number)


def _number(text: str) -> float:
    """Return an integer where JSON Schema sees one: 2.0 is a length."""
    value = float(text)
    return int(value) if value.is_integer() else value
