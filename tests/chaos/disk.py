"""A disk of fixed size that can be filled: a file system in a file; mounting it requires root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_BALLAST = ".ballast"


@lru_cache(maxsize=1)
def can_mount() -> bool:
    """Return whether this process may mount a file system; root in a container often may not."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder) / "mounted", megabytes=8)
        disk.folder.mkdir()
        try:
            disk.mount()
        except (OSError, subprocess.CalledProcessError):
            return False
        disk.unmount()
    return True


@dataclass(frozen=True)
class Disk:
    """An ext4 image in a sparse file beside `folder`, mounted over it with the folder's contents."""

    folder: Path
    megabytes: int

    def mount(self) -> None:
        """Mount the disk; raises CalledProcessError if that is not allowed."""
        stat = self.folder.stat()
        image = self.folder.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(self.megabytes << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        with tempfile.TemporaryDirectory() as aside:
            _run("cp", "-a", f"{self.folder}/.", aside)
            _run("mount", "-o", "loop,nodiscard", str(image), str(self.folder))
            (self.folder / "lost+found").rmdir()
            _run("cp", "-a", f"{aside}/.", str(self.folder))
        os.chown(self.folder, stat.st_uid, stat.st_gid)
        self.folder.chmod(stat.st_mode & 0o777)

    def unmount(self) -> None:
        """Unmount the disk lazily, even if it is in use."""
        _run("umount", "-l", str(self.folder))
        self.folder.with_suffix(".img").unlink()

    def fill(self) -> None:
        """Allocate all free space."""
        descriptor = os.open(self.folder / _BALLAST, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            size = 0
            piece = self.megabytes << 20
            while piece >= 4096:
                try:
                    os.posix_fallocate(descriptor, size, piece)
                    size += piece
                except OSError:
                    piece //= 2
        finally:
            os.close(descriptor)

    def empty(self) -> None:
        """Free the space again."""
        with suppress(OSError):
            (self.folder / _BALLAST).unlink(missing_ok=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
