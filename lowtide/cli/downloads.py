"""Downloads to a file, which is complete or absent."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class DownloadFailed(Exception):
    """A download that was refused, broke off or cannot be written."""


def write(pieces: Iterable[bytes], target: Path) -> tuple[int, int]:
    """Write pieces to `target`; return its lines and bytes.

    Raises DownloadFailed; an incomplete file is removed.
    """
    partial = target.with_name(f"{target.name}.part")
    lines, written = 0, 0
    try:
        with partial.open("wb") as out:
            for piece in pieces:
                lines += piece.count(b"\n")
                written += out.write(piece)
        partial.replace(target)
    except OSError as error:
        raise DownloadFailed(f"{target} cannot be written: {error.strerror}.") from error
    finally:
        # A folder of the target that is a file, or a name that is too long.
        with suppress(OSError):
            partial.unlink()
    return lines, written
