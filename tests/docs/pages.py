"""The code blocks of the documentation, and the comments that name those that cannot run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sybil import Document
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, FencedCodeBlockLexer

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (
    "*.md",
    "docs/**/*.md",
    "functions/*/*.md",
    "knative/*.md",
    "keda/*.md",
    "monitoring/*.md",
)
SHELL = "sh"
PYTHON = "python"
_FENCE = FencedCodeBlockLexer(language=f"(?:{SHELL}|{PYTHON})\\b[^\n]*")
_MARKER = DirectiveInHTMLCommentLexer("not run")


@dataclass(frozen=True)
class Block:
    """A block of shell or Python; `reason` says why it cannot run, None if it can."""

    page: str
    line: int
    language: str
    source: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, with continued ones joined."""
        return self.source.replace("\\\n", " ").splitlines()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Marker:
    """A comment `<!-- not run: REASON -->`, and whether a block follows it directly."""

    page: str
    line: int
    reason: str
    has_block: bool


@cache
def pages() -> tuple[str, ...]:
    """Return the paths of all pages."""
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
    return tuple(sorted(str(path.relative_to(ROOT)) for path in found))


@cache
def parse(page: str) -> tuple[tuple[Block, ...], tuple[Marker, ...]]:
    """Return the blocks and the markers of a page, in order."""
    document = Document.parse(str(ROOT / page))
    fences = list(_FENCE(document))
    markers = []
    reasons: dict[int, str] = {}
    for comment in _MARKER(document):
        reason = comment.lexemes["arguments"].strip()
        # The region of a comment ends before its `-->`.
        below = [f for f in fences if document.text[comment.end : f.start].strip(" ") == "-->\n"]
        reasons.update({fence.start: reason for fence in below})
        markers.append(Marker(page, _line(document, comment.start), reason, bool(below)))
    blocks = [
        Block(
            page,
            _line(document, fence.start),
            fence.lexemes["language"].split()[0],
            fence.lexemes["source"],
            reasons.get(fence.start),
        )
        for fence in fences
    ]
    return tuple(blocks), tuple(markers)


def blocks() -> list[Block]:
    """Return the blocks of all pages."""
    return [block for page in pages() for block in parse(page)[0]]


def languages(page: str) -> list[str]:
    """Return what follows each opening fence of a page: the language of its block."""
    fences = re.findall(r"^[ \t]*```(.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    return fences[::2]


def _line(document: Document, position: int) -> int:
    return document.text.count("\n", 0, position) + 1
