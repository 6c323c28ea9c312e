from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lowtide.local.database import binaries, can_run, copied, wheel_folder
from lowtide.local.environment import postgres_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="lowtide-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_server_user_can_run_binaries() -> None:
    assert can_run(binaries(), postgres_credentials())


def test_inaccessible_binaries_are_copied_and_folder_stays_private(
    tmp_path: Path, public: Path
) -> None:
    home = tmp_path / "root"
    home.mkdir(mode=0o700)
    private = home / "pginstall"
    shutil.copytree(wheel_folder(), private, symlinks=True)
    for path in private.rglob("*"):  # like pip under umask 077
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    assert not can_run(private / "bin", postgres_credentials())
    target = public / "cache" / "postgres"
    for _ in range(2):
        assert copied(private, target) == target
        assert can_run(target / "bin", postgres_credentials())
    assert home.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in target.parent.iterdir()] == ["postgres"]
