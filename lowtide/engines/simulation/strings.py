"""Strings of a schema: by format, by pattern, or words of a wanted length."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from lowtide.engines.simulation.merging import Impossible
from lowtide.engines.simulation.patterns import PatternError, matching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

_WORDS: Final = ("and", "the", "tide", "goes", "out", "and", "comes", "in", "again")
_LONGEST: Final = 1_000_000
_TRIES: Final = 50
_BORN: Final = datetime(2025, 1, 1, tzinfo=UTC)


def string(schema: Mapping[str, Any], random: Random) -> str:
    """Return a string; raises Impossible when none was found."""
    shortest = schema.get("minLength", 0)
    longest = schema.get("maxLength", max(shortest, _LONGEST))
    if shortest > min(longest, _LONGEST):
        raise Impossible(f"no string has {shortest} to {min(longest, _LONGEST)} characters")
    if "pattern" in schema:
        return _by_pattern(schema["pattern"], shortest, longest, random)
    if (make := _FORMATS.get(schema.get("format", ""))) is not None:
        return make(random)
    return _words(shortest, longest, random)


def _by_pattern(pattern: str, shortest: int, longest: int, random: Random) -> str:
    for attempt in range(_TRIES):
        try:
            # Long repetitions only once short ones did not do.
            made = matching(pattern, random, most_repeats=2 + attempt)
        except PatternError as error:
            raise Impossible(f"the pattern {pattern!r} is not supported: {error}") from error
        if not pattern.endswith("$"):
            made += "".join(random.choices(ascii_lowercase, k=max(shortest - len(made), 3)))
        if shortest <= len(made) <= longest:
            return made
    raise Impossible(f"no string of the wanted length matches {pattern!r}")


def _words(shortest: int, longest: int, random: Random) -> str:
    start = random.randrange(len(_WORDS))
    words = [_WORDS[(start + at) % len(_WORDS)] for at in range(random.randint(1, 4))]
    text = " ".join(words)
    while len(text) < shortest:
        text += " " + random.choice(_WORDS)
    if len(text) <= longest:
        return text
    cut = text[:longest]
    return cut if not cut.endswith(" ") else cut[:-1] + "s"


def _moment(random: Random) -> datetime:
    return _BORN + timedelta(seconds=random.randrange(365 * 86_400))


def _date_time(random: Random) -> str:
    return _moment(random).strftime("%Y-%m-%dT%H:%M:%SZ")


def _address(random: Random) -> str:
    # 192.0.2.0/24 is kept for documentation, as example.com is.
    return f"192.0.2.{random.randrange(1, 255)}"


def _uuid(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))


_FORMATS: Final[Mapping[str, Callable[[Random], str]]] = {
    "date-time": _date_time,
    "date": lambda random: _date_time(random)[:10],
    "time": lambda random: _date_time(random)[11:],
    "duration": lambda random: f"PT{random.randint(1, 59)}M",
    "email": lambda random: f"{random.choice(_WORDS)}{random.randrange(100)}@example.com",
    "hostname": lambda random: f"{random.choice(_WORDS)}.example.com",
    "ipv4": _address,
    "ipv6": lambda random: f"2001:db8::{random.randrange(1, 0xFFFF):x}",
    "uuid": _uuid,
    "uri": lambda random: f"https://example.com/{random.choice(_WORDS)}",
    "uri-reference": lambda random: f"/{random.choice(_WORDS)}",
    "json-pointer": lambda random: f"/{random.choice(_WORDS)}",
    "regex": lambda random: f"^{random.choice(_WORDS)}$",
}
