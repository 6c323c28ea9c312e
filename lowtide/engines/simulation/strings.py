"""Strings of a JSON schema: by format, by pattern, or words of a given length."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from string import ascii_letters, ascii_lowercase, digits
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from lowtide.engines.simulation.merging import Impossible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random


_MAX_CHARACTERS: Final = 10_000
_DEEPEST: Final = 50
_WORD: Final = ascii_letters + digits + "_"
_PRINTABLE: Final = ascii_letters + digits + " -_.,:;!?()[]{}/+*=<>@#$%&'\"|~^`\\"
_CLASSES: Final[Mapping[str, str]] = {
    "d": digits,
    "w": _WORD,
    "s": " ",
    "D": ascii_letters,
    "W": " -.,",
    "S": ascii_letters + digits,
}
_CONTROLS: Final[Mapping[str, str]] = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_CODES: Final[Mapping[str, int]] = {"x": 2, "u": 4}


class PatternError(ValueError):
    """A pattern that is malformed or uses unsupported syntax."""


def matching(pattern: str, random: Random, *, max_repeats: int = 4) -> str:
    """Return a matching string; `*`, `+` and `{n,}` repeat up to `max_repeats` more times."""
    return _Walk(pattern, random, max_repeats).run()


class _Walk:
    """A walk along the pattern that rereads a part for each repetition."""

    def __init__(self, pattern: str, random: Random, max_repeats: int) -> None:
        self._pattern = pattern
        self._random = random
        self._max_repeats = max_repeats
        self._at = 0
        self._steps = 0
        self._depth = 0

    def run(self) -> str:
        text = self._alternatives()
        if self._at < len(self._pattern):
            raise PatternError(f"unexpected {self._pattern[self._at]!r}")
        return text

    def _alternatives(self) -> str:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise PatternError("groups are nested too deeply")
        alternatives = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            alternatives.append(self._sequence())
        self._depth -= 1
        return self._random.choice(alternatives)

    def _sequence(self) -> str:
        text = ""
        while self._peek() not in {"", "|", ")"}:
            start = self._at
            atom = self._atom()
            end = self._at
            low, high = self._quantifier()
            after = self._at
            times = self._random.randint(low, high)
            if times:
                text += atom
            for _ in range(times - 1):
                self._at = start
                text += self._atom()
                if self._at != end or len(text) > _MAX_CHARACTERS:
                    raise PatternError("it is too long")
            self._at = after
        return text

    def _quantifier(self) -> tuple[int, int]:
        match self._peek():
            case "*":
                bounds = (0, self._max_repeats)
            case "+":
                bounds = (1, 1 + self._max_repeats)
            case "?":
                bounds = (0, 1)
            case "{" if (braces := self._braces()) is not None:
                return braces
            case _:
                return (1, 1)
        self._at += 1
        self._skip_lazy()
        return bounds

    def _braces(self) -> tuple[int, int] | None:
        end = self._pattern.find("}", self._at)
        low, comma, high = self._pattern[self._at + 1 : end].partition(",")
        if end < 0 or not low.isdecimal() or (high and not high.isdecimal()):
            return None
        self._at = end + 1
        self._skip_lazy()
        first = int(low)
        last = int(high) if high else first + (self._max_repeats if comma else 0)
        if first > last:
            raise PatternError("the bounds of a repetition are out of order")
        return first, min(last, first + self._max_repeats)

    def _skip_lazy(self) -> None:
        if self._peek() == "?":
            self._at += 1

    def _atom(self) -> str:
        self._steps += 1
        if self._steps > _MAX_CHARACTERS:
            raise PatternError("it is too long")
        character = self._next()
        match character:
            case "^" | "$":
                return ""
            case ".":
                return self._random.choice(_WORD)
            case "[":
                return self._random.choice(self._set())
            case "(":
                return self._group()
            case "\\":
                return (
                    self._random.choice(self._escape())
                    if self._peek() not in "bB"
                    else (self._boundary())
                )
            case "*" | "+" | "?":
                raise PatternError(f"nothing to repeat before {character!r}")
            case _:
                return character

    def _boundary(self) -> str:
        self._next()
        return ""

    def _group(self) -> str:
        if self._peek() == "?":
            self._at += 1
            kind = self._next()
            if kind == "<" and self._peek() not in {"=", "!"}:
                self._at = self._pattern.find(">", self._at) + 1
            elif kind != ":":
                raise PatternError("look-around is not supported")
        text = self._alternatives()
        if self._peek() != ")":
            raise PatternError("unterminated group")
        self._at += 1
        return text

    def _set(self) -> str:
        negated = self._peek() == "^"
        self._at += negated
        characters = ""
        while self._peek() != "]":
            character = self._next()
            options = self._escape() if character == "\\" else character
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in {"]", ""}:
                self._at += 1
                last = self._next()
                last = self._escape() if last == "\\" else last
                options = _range(options, last)
            characters += options
        self._at += 1
        if negated:
            characters = "".join(each for each in _PRINTABLE if each not in characters)
        if not characters:
            raise PatternError("empty character set")
        return characters

    def _escape(self) -> str:
        """Return the characters that an escape stands for."""
        name = self._next()
        if name in _CLASSES:
            return _CLASSES[name]
        if name in _CONTROLS:
            return _CONTROLS[name]
        if (digits := _CODES.get(name)) is not None:
            code = self._pattern[self._at : self._at + digits]
            self._at += digits
            try:
                return chr(int(code, 16))
            except ValueError as error:
                raise PatternError(f"\\{name}{code} is not a character") from error
        if name.isalnum():
            raise PatternError(f"\\{name} is not supported")
        return name

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise PatternError("unexpected end")
        self._at += 1
        return self._pattern[self._at - 1]


def _range(first: str, last: str) -> str:
    if len(first) != 1 or len(last) != 1 or ord(first) > ord(last):
        raise PatternError(f"invalid range {first}-{last}")
    # Of a wide range, the first thousand characters suffice.
    return "".join(map(chr, range(ord(first), min(ord(last), ord(first) + 1000) + 1)))


_WORDS: Final = ("and", "the", "tide", "goes", "out", "and", "comes", "in", "again")
_LONGEST: Final = 1_000_000
_TRIES: Final = 50
_BORN: Final = datetime(2025, 1, 1, tzinfo=UTC)


def string(schema: Mapping[str, Any], random: Random) -> str:
    """Return a string for the schema; raises Impossible if none was found."""
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
            # Longer repetitions are tried only after shorter ones failed.
            text = matching(pattern, random, max_repeats=2 + attempt)
        except PatternError as error:
            raise Impossible(f"the pattern {pattern!r} is not supported: {error}") from error
        if not pattern.endswith("$"):
            text += "".join(random.choices(ascii_lowercase, k=max(shortest - len(text), 3)))
        if shortest <= len(text) <= longest:
            return text
    raise Impossible(f"no string of the required length matches {pattern!r}")


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
    # 192.0.2.0/24 is reserved for documentation, like example.com.
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
