"""The server that a command speaks to: the one that is named, or the local stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowtide.terminal import fail

if TYPE_CHECKING:
    from pathlib import Path

    from openai import OpenAI

    from lowtide.local.options import Options
    from lowtide.local.state import Status

Url = Annotated[
    str | None,
    typer.Option(envvar="OPENAI_BASE_URL", help="The server; default: the local stack."),
]
Key = Annotated[
    str | None, typer.Option(envvar="OPENAI_API_KEY", help="The key; default: the local stack's.")
]


def stack_options(
    data_dir: Path | None, port: int = 8080, portal_port: int | None = None, **more: Any
) -> Options:
    """Return where the local stack lives, its ports, and `more` of its options."""
    from lowtide.local.options import Options, default_data_dir

    place = data_dir or default_data_dir()
    return Options(data_dir=place, port=port, portal_port=portal_port, **more)


def running_stack(data_dir: Path | None) -> Status:
    """Return the state of the local stack; fails when none runs."""
    from lowtide.local import runtime

    found = runtime.status(stack_options(data_dir).data_dir)
    if found is None:
        fail("No local stack is running: start it with `lowtide up`.")
    return found


def connect(url: str | None, key: str | None, data_dir: Path | None) -> OpenAI:
    """Return a client of the server that is named, or of the local stack."""
    from lowtide.client import open_client

    if url is not None and key is not None:
        return open_client(url.removesuffix("/").removesuffix("/v1"), key)
    found = running_stack(data_dir)
    return open_client(url or found.base_url, key or found.api_key)


class api_errors:  # noqa: N801
    """Turns the client's errors into a message and exit code 1."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from openai import APIConnectionError, APIStatusError

        if isinstance(error, APIConnectionError):
            fail("The server cannot be reached: is it running, and is --url right?")
        if isinstance(error, APIStatusError):
            detail = error.body.get("message") if isinstance(error.body, dict) else None
            fail(str(detail or error.message))
