"""How an operator's commands reach the database: LOWTIDE_DATABASE_URL's, or else the local stack's."""

from __future__ import annotations

import getpass
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.errors import LowtideError
from lowtide.terminal import fail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Access:
    """The database as the role `lowtide_operator`, the pepper of keys, and who the audit log names."""

    url: str
    pepper: str
    actor: str


@contextmanager
def operating(data_dir: Path | None) -> Iterator[Access]:
    """Open what a command needs; errors within become a message and exit code 1."""
    from lowtide.local.errors import LocalError
    from lowtide.settings import read_settings

    try:
        settings = read_settings()
        url = settings.database_url.get_secret_value()
        pepper = settings.api_key_pepper.get_secret_value()
        if not url:
            # The local stack's parts are not in the image.
            from lowtide.local.access import operator_access
            from lowtide.local.options import default_data_dir

            access = operator_access(data_dir or default_data_dir())
            url, pepper = access.url, access.pepper
        yield Access(url, pepper, f"operator {_user()}")
    except LowtideError as error:
        fail(error.message)
    except (LocalError, ValueError) as error:
        fail(str(error))


def _user() -> str:
    """Return who runs the command; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
