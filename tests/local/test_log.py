from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from lowtide.local.log import Log

if TYPE_CHECKING:
    from pathlib import Path


def written(tmp_path: Path, chunks: list[bytes], *, coloured: bool = False) -> str:
    async def feed(log: Log) -> None:
        reader = asyncio.StreamReader()
        for chunk in chunks:
            reader.feed_data(chunk)
        reader.feed_eof()
        await log.follow("read", reader)

    path = tmp_path / "log"
    with path.open("wb") as file:
        asyncio.run(feed(Log(file.fileno(), coloured=coloured)))
    return path.read_text()


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\ntw", b"o"], ["one", "two"]),
        ([b"\n\n one \n"], [" one"]),
        ([b"\xff\n"], ["\ufffd"]),
        ([b"x" * 70_000 + b"\n"], ["x" * 70_000]),
    ],
    ids=["lines", "split", "blank", "not-utf-8", "long"],
)
def test_whole_lines_with_prefix(tmp_path: Path, chunks: list[bytes], lines: list[str]) -> None:
    assert written(tmp_path, chunks).splitlines() == [f"read         | {one}" for one in lines]


def test_colours_only_when_asked(tmp_path: Path) -> None:
    assert written(tmp_path, [b"a\n"], coloured=True).startswith("\x1b[")


def test_a_closed_terminal_does_not_end_the_stack() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    Log(writer).line("lowtide", "nobody reads this")
    os.close(writer)
