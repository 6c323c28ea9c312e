"""Strings that match a regular expression as JSON schemas have them: ECMA-262 without look-around."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

_MOST_CHARACTERS: Final = 10_000
_DEEPEST: Final = 50
_WORD: Final = string.ascii_letters + string.digits + "_"
_PRINTABLE: Final = string.ascii_letters + string.digits + " -_.,:;!?()[]{}/+*=<>@#$%&'\"|~^`\\"
_CLASSES: Final[Mapping[str, str]] = {
    "d": string.digits,
    "w": _WORD,
    "s": " ",
    "D": string.ascii_letters,
    "W": " -.,",
    "S": string.ascii_letters + string.digits,
}
_CONTROLS: Final[Mapping[str, str]] = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_CODES: Final[Mapping[str, int]] = {"x": 2, "u": 4}


class PatternError(ValueError):
    """The pattern uses what is not supported here."""


def matching(pattern: str, random: Random, *, most_repeats: int = 4) -> str:
    """Return a string that matches; `*`, `+` and `{n,}` repeat up to `most_repeats` times more."""
    return _Walk(pattern, random, most_repeats).run()


class _Walk:
    """Reads the pattern once for each time that a part of it is repeated."""

    def __init__(self, pattern: str, random: Random, most_repeats: int) -> None:
        self._pattern = pattern
        self._random = random
        self._most = most_repeats
        self._at = 0
        self._steps = 0
        self._depth = 0

    def run(self) -> str:
        made = self._alternatives()
        if self._at < len(self._pattern):
            raise PatternError(f"unexpected {self._pattern[self._at]!r}")
        return made

    def _alternatives(self) -> str:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise PatternError("groups are nested too deep")
        made = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            made.append(self._sequence())
        self._depth -= 1
        return self._random.choice(made)

    def _sequence(self) -> str:
        made = ""
        while self._peek() not in {"", "|", ")"}:
            start = self._at
            once = self._atom()
            end = self._at
            low, high = self._quantifier()
            after = self._at
            times = self._random.randint(low, high)
            if times:
                made += once
            for _ in range(times - 1):
                self._at = start
                made += self._atom()
                if self._at != end or len(made) > _MOST_CHARACTERS:
                    raise PatternError("it is too long")
            self._at = after
        return made

    def _quantifier(self) -> tuple[int, int]:
        match self._peek():
            case "*":
                bounds = (0, self._most)
            case "+":
                bounds = (1, 1 + self._most)
            case "?":
                bounds = (0, 1)
            case "{" if (found := self._braces()) is not None:
                return found
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
        last = int(high) if high else first + (self._most if comma else 0)
        if first > last:
            raise PatternError("a repetition's bounds are the wrong way round")
        return first, min(last, first + self._most)

    def _skip_lazy(self) -> None:
        if self._peek() == "?":
            self._at += 1

    def _atom(self) -> str:
        self._steps += 1
        if self._steps > _MOST_CHARACTERS:
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
        made = self._alternatives()
        if self._peek() != ")":
            raise PatternError("a group has no end")
        self._at += 1
        return made

    def _set(self) -> str:
        negated = self._peek() == "^"
        self._at += negated
        found = ""
        while self._peek() != "]":
            character = self._next()
            options = self._escape() if character == "\\" else character
            if self._peek() == "-" and self._pattern[self._at + 1 : self._at + 2] not in {"]", ""}:
                self._at += 1
                last = self._next()
                last = self._escape() if last == "\\" else last
                options = _range(options, last)
            found += options
        self._at += 1
        if negated:
            found = "".join(each for each in _PRINTABLE if each not in found)
        if not found:
            raise PatternError("a set is empty")
        return found

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
                raise PatternError(f"\\{name}{code} is no character") from error
        if name.isalnum():
            raise PatternError(f"\\{name} is not supported")
        return name

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _next(self) -> str:
        if self._at >= len(self._pattern):
            raise PatternError("it ends too early")
        self._at += 1
        return self._pattern[self._at - 1]


def _range(first: str, last: str) -> str:
    if len(first) != 1 or len(last) != 1 or ord(first) > ord(last):
        raise PatternError(f"{first}-{last} is no range")
    # A wide range is as good by its first thousand.
    return "".join(map(chr, range(ord(first), min(ord(last), ord(first) + 1000) + 1)))
