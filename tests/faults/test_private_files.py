"""The local stack's files are private to its user, and other folders stay unchanged."""

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
    """A folder with mode 0700, like `/root`."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def stack(home: Path) -> Iterator[LocalStack]:
    before = os.umask(0o022)  # the default of most systems
    stack_ = LocalStack(home / "share" / "lowtide", {"LOWTIDE_SIMULATED_LATENCY": "0.01"})
    stack_.data_dir.parent.mkdir()
    try:
        stack_.up()
        yield stack_
    finally:
        os.umask(before)
        stack_.discard()


def modes_below(folder: Path) -> dict[Path, int]:
    """Return the modes of a folder and its contents, without files removed meanwhile."""
    modes = {folder: folder.stat().st_mode}
    for place, folders, files in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *files)):
            with suppress(FileNotFoundError):
                modes[path] = path.lstat().st_mode
    return modes


def test_data_is_private_and_parent_folders_keep_their_modes(stack: LocalStack, home: Path) -> None:
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


def test_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path) -> None:
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
