"""Redaction of log text: secrets, and control characters that act on a terminal."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"

# Quotes may be escaped, as in JSON within JSON; a value ends at a JSON, URL or list delimiter.
_SEPARATOR: Final = r"\\?[\"']?\s*[=:]\s*\\?[\"']?"
# JSON numbers, booleans and null are kept, so that the text remains valid JSON.
_VALUE: Final = r"(?!(?<=\":)(?:-?\d|null|true|false)|None\b)[^\s\"'\\&,;{}()\[\]]+"
_NAMES: Final = (
    r"pass(?:word|wd)|pepper|client[_-]?secret|secret(?:[_-]?access)?(?:[_-]?key)?|"
    r"session[_-]?token|security-token|api[_-]?key|signature|\bsig"
)
_PATTERNS: Final = (
    # Must be first: another pattern may consume the scheme.
    (
        re.compile(r"(?i)((?<![a-z0-9+.-])[a-z0-9+.-]+://[^\s:/@\"'\\]*:)[^\s@/\"'\\]+@"),
        rf"\1{MASK}@",
    ),
    (re.compile(r"\blt_[A-Za-z0-9_-]{16,}"), f"lt_{MASK}"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), f"sk-{MASK}"),
    (re.compile(r"(?i)\b(bearer)\s+[a-z0-9._~+/=-]{8,}"), rf"\1 {MASK}"),
    (re.compile(rf"(?i)(authorization{_SEPARATOR}(?:\w+\s+)?){_VALUE}"), rf"\g<1>{MASK}"),
    (re.compile(rf"(?i)((?:{_NAMES}){_SEPARATOR}){_VALUE}"), rf"\g<1>{MASK}"),
)
# C0, DEL, C1, and characters that some readers treat as a line end or a change of text direction.
_CONTROLS: Final = {
    *range(0x20),
    *range(0x7F, 0xA0),
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
} - {0x09}
_ESCAPES: Final = {
    number: {0x0A: r"\n", 0x0D: r"\r"}.get(
        number, f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
    )
    for number in _CONTROLS
}
_JSON_ESCAPES: Final = {number: f"\\u{number:04x}" for number in _CONTROLS if number > 0x1F}


def masked(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Mask API keys, passwords, credentials and these `secrets` in `text`.

    Example:
        masked("postgresql://ana:hunter2@db/lowtide")  # postgresql://ana:***@db/lowtide
    """
    for secret in secrets:
        text = text.replace(secret, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def printable(text: str) -> str:
    """Return `text` as one line, with control characters escaped: `\\x1b`, `\\n`."""
    return text.translate(_ESCAPES)


def printable_json(text: str) -> str:
    """Escape the control characters that JSON allows unescaped."""
    return text.translate(_JSON_ESCAPES)
