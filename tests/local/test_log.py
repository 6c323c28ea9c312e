from __future__ import annotations

import asyncio
import os
import pty
from typing import TYPE_CHECKING

import pytest

from lowtide.local.processes import Log

if TYPE_CHECKING:
    from pathlib import Path


def logged(tmp_path: Path, chunks: list[bytes], *, coloured: bool = False) -> str:
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
def test_output_is_logged_as_prefixed_lines(
    tmp_path: Path, chunks: list[bytes], lines: list[str]
) -> None:
    assert logged(tmp_path, chunks).splitlines() == [f"read         | {one}" for one in lines]


def test_process_cannot_forge_line_of_another(tmp_path: Path) -> None:
    forged = "\x1b[2K\rlowtide      | ready\x9b2J\u2028portal       | signed in\x85"
    assert logged(tmp_path, [forged.encode() + b"\n"]) == (
        r"read         | \x1b[2K\rlowtide      | ready\x9b2J\u2028portal       | signed in\x85"
        "\n"
    )
    path = tmp_path / "own"
    with path.open("wb") as file:
        Log(file.fileno()).line("lowtide", "no such file: a\nportal       | signed in")
    assert path.read_text() == "lowtide      | no such file: a\\nportal       | signed in\n"


def test_secrets_are_masked(tmp_path: Path) -> None:
    key, password = "lt_" + "k" * 43, "hunter2"
    line = f"Authorization: Bearer {key} postgresql://ana:{password}@db/x {key}"
    text = logged(tmp_path, [line.encode() + b"\n"])
    assert key not in text
    assert password not in text
    assert "postgresql://ana:***@db/x lt_***" in text


def test_secret_is_shown_on_terminal_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        Log(file.fileno()).secret("lowtide", "key lt_secret", elsewhere="key: see status")
    assert path.read_text() == "lowtide      | key: see status\n"
    ours, terminal = pty.openpty()
    try:
        Log(terminal).secret("lowtide", "key lt_secret", elsewhere="key: see status")
        assert b"key lt_secret" in os.read(ours, 1000)
    finally:
        os.close(ours)
        os.close(terminal)


def test_log_is_coloured_on_request(tmp_path: Path) -> None:
    assert logged(tmp_path, [b"a\n"], coloured=True).startswith("\x1b[")


def test_closed_terminal_raises_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    Log(writer).line("lowtide", "nobody reads this")
    os.close(writer)
