"""What the local stack stores is for the user that runs it alone, and no other folder is changed."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.command import lowtide
from tests.e2e.questions import chat_file, simulated_answer
from tests.e2e.stacks import LocalStack

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that nobody else may enter, as `/root` is."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def stack(home: Path) -> Iterator[LocalStack]:
    before = os.umask(0o022)  # what most systems have
    made = LocalStack(home / "share" / "lowtide", {"LOWTIDE_SIMULATED_LATENCY": "0.01"})
    made.data_dir.parent.mkdir()
    try:
        made.up()
        yield made
    finally:
        os.umask(before)
        made.discard()


def modes_below(folder: Path) -> dict[Path, int]:
    """Return the modes of a folder and of all in it, but for what a running stack just removed."""
    found = {folder: folder.stat().st_mode}
    for place, folders, files in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *files)):
            with suppress(FileNotFoundError):
                found[path] = path.lstat().st_mode
    return found


def test_everything_is_private_and_nothing_above_is_changed(stack: LocalStack, home: Path) -> None:
    above = [home, stack.data_dir.parent]
    modes = {path: path.stat().st_mode for path in above}
    data = chat_file(20)
    stack.finish(stack.submit(stack.upload(data)), data, answers=simulated_answer)
    entries = modes_below(stack.data_dir)
    assert len([path for path in entries if path.is_relative_to(stack.data_dir / "objects")]) > 3
    assert [path for path, mode in entries.items() if mode & OTHERS] == []
    stack.down()
    stack.up()
    assert {path: path.stat().st_mode for path in above} == modes


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "documents"
    theirs.mkdir(mode=0o755)
    (theirs / "letter.txt").write_text("Dear Ana")
    before = theirs.stat().st_mode
    for command in (("up", "--detach"), ("up",)):
        refused = lowtide(*command, "--data-dir", theirs, fails=True)
        assert "has other files, such as letter.txt: choose an empty or new directory" in (
            refused.stdout + refused.stderr
        ).replace("\n", " ")
    assert [path.name for path in theirs.iterdir()] == ["letter.txt"]
    assert theirs.stat().st_mode == before
