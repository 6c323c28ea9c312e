"""`make demo`: one batch on this machine, from a JSONL file to an output file."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from openai import APIStatusError, OpenAIError
from rich.console import Console

from lowtide.cli import client as api
from lowtide.cli.progress import BatchProgress, UploadProgress, show_summary
from lowtide.local import runtime
from lowtide.local.options import LocalError, Options, default_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.local.state import Status


_INTERRUPTION_RATE = "LOWTIDE_SIMULATED_INTERRUPTION_RATE"


def main() -> None:
    """Run `FILE` through a stack of its own, and save the output as `OUT`.

    `PORT` and `DATA_DIR` configure the stack; a temporary data directory is removed at the end.
    """
    console = Console()
    file = Path(os.environ.get("FILE") or default_root() / "examples" / "questions.jsonl")
    out = Path(os.environ.get("OUT") or f"{file.stem}.out.jsonl")
    # Simulated spot interruptions make retries visible in the demo.
    os.environ.setdefault(_INTERRUPTION_RATE, "0.1")
    try:
        with _stack(console) as status:
            completed = _run(console, status, file, out)
    except (LocalError, OpenAIError, OSError) as error:
        console.print(_message(error), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    console.print("Stopped. `make up` leaves a stack running.")
    sys.exit(0 if completed else 1)


def _run(console: Console, status: Status, file: Path, out: Path) -> bool:
    client = api.open_client(status.base_url, status.api_key)
    start = time.monotonic()
    batch = api.submit(client, file, api.Terms(user="demo"), progress=UploadProgress(console))
    console.print(f"{batch.id}: {file}", markup=False, soft_wrap=True)
    with BatchProgress(console) as progress:
        batch = api.follow(lambda: client.batches.retrieve(batch.id), batch, progress.show)
    summary = api.summarize(batch, time.monotonic() - start)
    files = api.save(client, batch, out)
    show_summary(console, batch, summary, files)
    return batch.status == "completed"


@contextmanager
def _stack(console: Console) -> Iterator[Status]:
    configured = os.environ.get("DATA_DIR")
    data_dir = Path(configured) if configured else Path(tempfile.mkdtemp(prefix="lowtide-demo-"))
    options = Options(data_dir=data_dir, port=int(os.environ.get("PORT") or 8080))
    try:
        with console.status("Starting PostgreSQL, the functions and the portal …"):
            status = runtime.up_detached(options)
        console.print(f"API    {status.base_url}/v1", highlight=False)
        password = status.portal_password
        console.print(f"Portal {status.portal_url}  password {password}", highlight=False)
        yield status
    finally:
        with console.status("Stopping …"):
            runtime.down(data_dir)
        if not configured:
            shutil.rmtree(data_dir, ignore_errors=True)


def _message(error: Exception) -> str:
    if isinstance(error, APIStatusError) and isinstance(error.body, dict):
        return str(error.body.get("message", error.message))
    return str(error)


if __name__ == "__main__":
    main()
