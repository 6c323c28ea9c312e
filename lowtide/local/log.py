"""One readable log of many processes: `infer-spot-1 | text`, a whole line at a time.

Secrets are masked and control characters escaped, so that no process and no value in its lines can
forge a line of another.
"""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING

from lowtide.domain.redaction import masked, printable

if TYPE_CHECKING:
    import asyncio

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_LONGEST = 65_536  # a longer line is broken, so that memory stays bounded


class Log:
    """Writes prefixed lines to a file descriptor; `coloured` for a terminal."""

    def __init__(self, descriptor: int, *, coloured: bool = False) -> None:
        self._descriptor = descriptor
        self._coloured = coloured
        self._width = 12

    def line(self, name: str, text: str) -> None:
        """Write one line in one system call; a closed terminal is ignored."""
        self._write(name, masked(text))

    def secret(self, name: str, text: str, *, elsewhere: str) -> None:
        """Write a line with a secret to a terminal, and to a file what else is there to be said."""
        self._write(name, text if os.isatty(self._descriptor) else elsewhere)

    def _write(self, name: str, text: str) -> None:
        self._width = max(self._width, len(name))
        prefix = f"{name:<{self._width}} |"
        if self._coloured:
            colour = _COLOURS[zlib.crc32(name.encode()) % len(_COLOURS)]
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        data = f"{prefix} {printable(text)}\n".encode(errors="replace")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            # The stack must outlive the terminal or pipe that showed its log.
            return

    async def follow(self, name: str, output: asyncio.StreamReader) -> None:
        """Write what a process prints until it closes its output."""
        rest = b""
        while chunk := await output.read(_LONGEST):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST:
                lines.append(rest)
                rest = b""
            for line in lines:
                self._show(name, line)
        if rest:
            self._show(name, rest)

    def _show(self, name: str, line: bytes) -> None:
        if text := line.decode(errors="replace").rstrip(" \t\r"):
            self.line(name, text)
