"""YAML files that operators write: every problem of one at once, with its line and its fix."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails


Location = tuple[str | int, ...]
"""The keys and positions that lead to a value."""
Problem = tuple[Location, str]
KEY: Final = "[key]"
"""Pydantic's mark of an invalid key, last in its location."""
_SECRETS: Final = ("key", "token", "secret", "password")
_MAPPING: Final = "must be a mapping, such as `key: value`"
_MESSAGES: Final = {
    "missing": "is missing",
    "string_type": "must be text: put it in quotes",
    "model_type": _MAPPING,
    "dict_type": _MAPPING,
    "too_short": "must not be empty",
}


class InvalidFile(ValueError):
    """A file with problems; the text has one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Part(BaseModel):
    """A mapping of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_text(path: Path) -> str:
    """Return the text of a file; raises InvalidFile."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile([f"{path} cannot be read: {error}"]) from error


@dataclass(frozen=True, slots=True)
class YamlFile:
    """The content of a file, and the places of its keys."""

    name: str
    data: Any
    root: yaml.Node | None
    repeated: Sequence[tuple[int, str]]

    @classmethod
    def parse(cls, text: str, name: str) -> YamlFile:
        """Parse a text; raises InvalidFile if it is not YAML."""
        try:
            root = yaml.compose(text, yaml.SafeLoader)
            return cls(name, yaml.safe_load(text), root, list(_repeated_keys(root)))
        except yaml.YAMLError as error:
            raise InvalidFile([f"{name}: {error}"]) from error

    def refusal(self, found: Iterable[tuple[Location, str]]) -> InvalidFile:
        """Return the error for these problems, each with the text to show, in the order of lines."""
        lines = [(self.line_of(location), text) for location, text in found]
        return InvalidFile(
            [f"{self.name}:{line}: {text}" for line, text in sorted([*lines, *self.repeated])]
        )

    def line_of(self, location: Location) -> int:
        """Return the line of a value's key, or that of the closest mapping around it, from 1."""
        node, line = self.root, 1
        for part in location:
            if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                if part >= len(node.value):
                    break
                node = node.value[part]
                line = node.start_mark.line + 1
            elif isinstance(node, yaml.MappingNode):
                found = [pair for pair in node.value if pair[0].value == str(part)]
                if not found:
                    break
                line, node = found[-1][0].start_mark.line + 1, found[-1][1]
        return line


def problems_of(
    error: ValidationError, file: type[Part], fixes: Mapping[str, str], *, secrets_in: str
) -> Iterator[Problem]:
    """Yield what is wrong and its fix; never the value, which may be a secret.

    `fixes` are the messages of patterns; `secrets_in` says where secrets belong.
    """
    details = error.errors(include_url=False)
    for detail in details:
        location, kind = detail["loc"], detail["type"]
        if kind == "too_short" and _is_around_another(location, details):
            # A list of which no item is valid counts as empty, too.
            continue
        if kind == "extra_forbidden":
            message = _unknown_key(location, file, secrets_in)
        elif kind == "string_pattern_mismatch":
            message = fixes[detail["ctx"]["pattern"]]
        elif kind in _MESSAGES:
            message = _MESSAGES[kind]
        else:
            message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
        yield location, message


def _is_around_another(location: Location, details: Sequence[ErrorDetails]) -> bool:
    length = len(location)
    return any(each["loc"][:length] == location and len(each["loc"]) > length for each in details)


def _unknown_key(location: Location, file: type[Part], secrets_in: str) -> str:
    """Return the keys that exist instead; `location` is that of the unknown key."""
    key, known = str(location[-1]), _keys_at(location[:-1], file)
    similar = get_close_matches(key, known, n=1)
    fix = f"did you mean {similar[0]}?" if similar else f"known are {', '.join(known)}"
    if any(word in key.lower() for word in _SECRETS):
        fix = f"secrets do not belong in this file: {secrets_in}"
    return f"is an unknown key; {fix}"


def _keys_at(location: Location, file: type[Part]) -> list[str]:
    """Return the keys of the mapping at a location."""
    part = file
    for name in location:
        field = part.model_fields.get(str(name))
        if field is not None:
            part = _part_in(field.annotation) or part
    return list(part.model_fields)


def _part_in(annotation: Any) -> type[Part] | None:
    """Return the kind of mapping that an annotation names, such as those of a dict's values."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    inner = [_part_in(each) for each in getattr(annotation, "__args__", ())]
    return next((each for each in inner if each is not None), None)


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Yield the keys that occur twice in a mapping, of which YAML drops the first."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                yield line, f"{key.value} is repeated, after line {seen[key.value]}: remove one"
            seen[str(key.value)] = line
            yield from _repeated_keys(value)
