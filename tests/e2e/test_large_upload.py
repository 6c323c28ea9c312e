"""A large file through a whole stack, by the official client and by `lowtide submit`.

`LARGE_UPLOAD_MB` sets its size, 200 by default.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from lowtide.core.ids import parse_batch_id
from tests.e2e.command import LOWTIDE, clean_environment
from tests.e2e.conftest import SETTINGS
from tests.faults.memory import memory_limit, peak_memory, reset_peaks
from tests.http.forms import line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.conftest import StackFactory
    from tests.e2e.stacks import LocalStack

MEGABYTES = int(os.environ.get("LARGE_UPLOAD_MB", "200"))
LINE_BYTES = 10_000
LINES = MEGABYTES * 1_000_000 // LINE_BYTES
CLIENT_MIB = 512
# A program between: the peak of a process counts that of the one that started it.
PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
CHUNKED = """
import sys
from pathlib import Path
from openai import OpenAI
upload = OpenAI().uploads.upload_file_chunked(
    file=Path(sys.argv[1]), mime_type="application/jsonl", purpose="batch")
print(upload.file.id)
"""


@pytest.fixture(scope="module")
def roomy_stack(make_stack: StackFactory) -> LocalStack:
    limits = {
        "LOWTIDE_MAX_FILE_BYTES": str(max(MEGABYTES, 200) * 1_000_000),
        "LOWTIDE_MAX_BATCH_LINES": str(max(LINES, 50_000)),
    }
    return make_stack(SETTINGS | limits)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "in.jsonl"
    filler = LINE_BYTES - len(line("0" * 8, input=""))
    with path.open("wb") as out:
        for number in range(LINES):
            out.write(line(f"{number:08}", input="x" * filler))
    assert path.stat().st_size == MEGABYTES * 1_000_000
    return path


def sha256(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def measured(stack: LocalStack, *command: str | Path, state: Path) -> str:
    """Run a client; print its time and memory, and return its output."""
    environment = {
        "OPENAI_BASE_URL": f"{stack.base_url}/v1",
        "OPENAI_API_KEY": stack.api_key,
        "XDG_STATE_HOME": str(state),
    }
    reset_peaks(stack, "upload")
    began = time.monotonic()
    peak = state / "peak"
    process = subprocess.run(
        [sys.executable, "-c", PEAK, str(peak), *map(str, command)],
        env=clean_environment(environment),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    output = process.stdout
    seconds = time.monotonic() - began
    server = peak_memory(stack, "upload") / (1 << 20)
    client = int(peak.read_text()) / 1024
    print(
        f"\n{MEGABYTES} MB in {seconds:.1f} s: {MEGABYTES / seconds:.0f} MB/s; "
        f"client {client:.0f} MiB, upload function {server:.0f} MiB"
    )
    assert process.returncode == 0, output
    assert client < CLIENT_MIB
    assert server < min(memory_limit("upload") / (1 << 20), 512)
    return output.strip()


def by_client(stack: LocalStack, file: Path, state: Path) -> str:
    return measured(stack, sys.executable, "-c", CHUNKED, file, state=state)


def by_submit(stack: LocalStack, file: Path, state: Path) -> str:
    batch = json.loads(measured(stack, LOWTIDE, "submit", file, "--json", state=state))
    assert parse_batch_id(batch["id"]) is not None
    stack.client.batches.cancel(batch["id"])
    return str(batch["input_file_id"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("send", [by_client, by_submit])
def test_large_file_arrives_whole_in_bounded_memory(
    roomy_stack: LocalStack,
    file: Path,
    tmp_path: Path,
    send: Callable[[LocalStack, Path, Path], str],
) -> None:
    found = roomy_stack.client.files.retrieve(send(roomy_stack, file, tmp_path))
    assert (found.status, found.status_details, found.bytes) == (
        "processed",
        None,
        MEGABYTES * 1_000_000,
    )
    (row,) = roomy_stack.query(
        "SELECT sha256, lines FROM files WHERE id = cast(:id AS uuid)",
        id=found.id.removeprefix("file-"),
    )
    assert (row.sha256, row.lines) == (sha256(file), LINES)
