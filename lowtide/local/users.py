"""The system user that PostgreSQL runs as when we are root, as it refuses to run as root."""

from __future__ import annotations

import os
import pwd
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, TypedDict

from lowtide.local.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "embedded_postgres"


class Credentials(TypedDict, total=False):
    """Arguments of `subprocess.Popen` that choose whom a child runs as."""

    user: int
    group: int
    extra_groups: Sequence[int]


def postgres_user() -> pwd.struct_passwd | None:
    """Return the user for PostgreSQL, made on first use; None when we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(NAME)
    except KeyError:
        pass
    try:
        subprocess.run(  # noqa: S603 - a fixed command
            ["useradd", "--system", "--shell", "/usr/sbin/nologin", NAME],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        with suppress(KeyError):  # another stack was quicker
            return pwd.getpwnam(NAME)
        raise StartFailed(
            f"PostgreSQL does not run as root, and the user {NAME} cannot be made ({error}): "
            "run lowtide as another user."
        ) from error
    return pwd.getpwnam(NAME)


def postgres_credentials() -> Credentials:
    """Return how to start PostgreSQL's processes."""
    user = postgres_user()
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
