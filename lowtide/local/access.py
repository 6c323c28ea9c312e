"""The way into a running stack's database, for its operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL

from lowtide.local import runtime, secrets
from lowtide.local.bootstrap import DATABASE
from lowtide.local.errors import LocalError
from lowtide.local.ports import HOST
from lowtide.local.state import POSTGRES

if TYPE_CHECKING:
    from pathlib import Path

OPERATOR = "lowtide_operator"


@dataclass(frozen=True, slots=True)
class Access:
    """The database's address as the operator's role, and the secret key of the keys' hash."""

    url: str
    pepper: str


def operator_access(data_dir: Path) -> Access:
    """Return the way into the stack of `data_dir`; raises LocalError when none runs."""
    status = runtime.status(data_dir)
    kept = secrets.read(data_dir)
    if status is None or kept is None:
        raise LocalError(
            "No local stack is running: start it with `lowtide up`, or name a database in "
            "LOWTIDE_DATABASE_URL, as the role lowtide_operator."
        )
    port = next(process.port for process in status.processes if process.name == POSTGRES)
    url = URL.create("postgresql", OPERATOR, kept.passwords[OPERATOR], HOST, port, DATABASE)
    return Access(url.render_as_string(hide_password=False), kept.api_key_pepper)
