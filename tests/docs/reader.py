"""A reader who types what the pages show: a checkout, a shell, and one local stack for all pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lowtide.core.pools import DEFAULT_FLEET
from tests.docs.pages import PYTHON, ROOT
from tests.e2e.command import clean_environment
from tests.e2e.questions import chat_file
from tests.e2e.stacks import FINAL, LocalStack
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.docs.pages import Block

TIMEOUT = 120.0
ENGINE = "http://127.0.0.1:8000"
"""The address of the reader's own engine in the pages; the tests' engine replaces it."""
STARTS_OR_STOPS = re.compile(r"\b(?:make|lowtide) (up|down)\b")

# Dead letters within seconds: one request in fifty fails on every worker, and is tried twice.
SETTINGS = {
    "LOWTIDE_SIMULATED_FAULTS": "poison:0.02",
    "LOWTIDE_SIMULATED_LATENCY": "0.2",
    "LOWTIDE_MAX_ATTEMPTS": "2",
    "LOWTIDE_RETRY_BASE": "0.1",
}
# What a page tells its reader to have.
GIVEN = {
    "REGISTRY": "registry.example",
    "DATABASE_HOST": "database.example",
    "OWNER_PASSWORD": "owner",
    "PORTAL_PASSWORD": "a long enough password",
}
# Programs that need a cluster or an image: the part after `--` or the image runs on this machine.
STUBS = {
    "kubectl": '[ "$1 $2 $3 $4 $5" = "exec -n lowtide deploy/portal --" ] && shift 5 && exec "$@"',
    "docker": '[ "$1 $2" = "run --rm" ] && shift 3 && exec "$@"',
}
_REFUSAL = 'echo "$0 $*: mark the block as not run" >&2; exit 64'
_BATCH = re.compile(r"batch_[0-9a-f]{32}\b")
_FILE = re.compile(r"file-[0-9a-f]{32}\b")
_LETTER = re.compile(r"\bbatch_req_[0-9a-f]{40}\b")


@dataclass
class Reader:
    """The reader's folder, environment and stack; `engine` is the URL of an engine of their own."""

    engine: str
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="lowtide-docs-")))
    seen: str = ""
    has_batches: bool = False
    has_prepared_stack: bool = False

    def __post_init__(self) -> None:
        """Lay out the checkout, its virtual environment and the stubs."""
        self.checkout.mkdir()
        for path in ROOT.iterdir():
            if path.name not in {".git", ".venv"}:
                (self.checkout / path.name).symlink_to(path)
        # `make` installs nothing: the environment is this one, and newer than its requirements.
        venv = self.checkout / ".venv"
        venv.mkdir()
        for path in Path(sys.prefix).iterdir():
            if not path.name.startswith("."):
                (venv / path.name).symlink_to(path)
        (venv / ".local").touch()
        # curl exits with 0 on an HTTP error unless it is told otherwise.
        (self.folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
        self.stubs.mkdir()
        for name, script in STUBS.items():
            (self.stubs / name).write_text(f"#!/bin/sh\n{script}\n{_REFUSAL}\n")
            (self.stubs / name).chmod(0o755)

    @property
    def checkout(self) -> Path:
        """The folder in which blocks run."""
        return self.folder / "lowtide"

    @property
    def stubs(self) -> Path:
        """The folder of the stubs."""
        return self.folder / "stubs"

    @cached_property
    def stack(self) -> LocalStack:
        """The stack, which need not run."""
        return LocalStack(self.folder / "data", SETTINGS)

    def open(self, *, prepared: bool) -> None:
        """Begin a page in a new shell: with a stack that has run batches, or with none."""
        self.seen = ""
        self._exports.unlink(missing_ok=True)
        if not (self.has_prepared_stack and prepared):
            if self.stack.is_ready():
                self.stack.down()
            self.has_prepared_stack = prepared
            if prepared:
                self.stack.up()
        if prepared and not self.has_batches:
            self._make_batches()

    def provide_tenant(self, *, exists: bool) -> None:
        """Make the tenant `acme` of the pages a new one with a key, or none."""
        self.stack.query("UPDATE tenants SET name = id::text WHERE name = 'acme' RETURNING id")
        if exists:
            for command in ("tenants", "keys"):
                self._lowtide(command, "create", "acme")

    def run(self, block: Block) -> None:
        """Run a block in the page's shell, and assert that every command succeeds."""
        source = self._filled_in(block.source)
        if block.language == PYTHON:
            script = f"python - <<'END_OF_BLOCK'\n{source}END_OF_BLOCK\n"
        else:
            script = source
        if self._exports.exists():
            script = f". {self._exports}\n{script}"
        script = f"set -euo pipefail\n{script}\nexport -p >{self._exports}\n"
        process = subprocess.Popen(
            ["bash", "-c", script],  # noqa: S607
            cwd=self.checkout,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            # The reader confirms every question.
            output, _ = process.communicate("y\n" * 10, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"{block} took {TIMEOUT:.0f} s:\n{source}\n{output}") from None
        assert process.returncode == 0, (
            f"{block}: exit {process.returncode}\n{source}\n{output}\n{self._log()}"
        )
        self.seen += output
        if STARTS_OR_STOPS.search(source):
            # The page may have moved the data away: the next stack then has other keys, and no batch.
            self.stack.forget_data()
            self.has_prepared_stack = self.has_batches = False

    def close(self) -> None:
        """Stop the stack and remove the folder."""
        self.stack.discard()
        shutil.rmtree(self.folder)

    @property
    def _exports(self) -> Path:
        return self.folder / "environment.sh"

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(
            [str(self.stubs), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        return {
            **clean_environment(GIVEN),
            "HOME": str(self.folder),
            "PATH": path,
            "PORT": str(self.stack.port),
            "PORTAL_PORT": str(self.stack.portal_port),
            "DATA_DIR": str(self.folder / "data"),
        }

    def _filled_in(self, source: str) -> str:
        """Replace placeholders: by ids that the page has printed, else by those of the stack."""
        # Whatever the page has shown before, a batch to cancel must be running, and one to run again
        # must have ended with dead letters that no page has requeued.
        batch = self._batch
        if "lowtide cancel" in source:
            batch = self._running_batch
        elif "lowtide retry-failed" in source:
            batch = self._batch_to_repeat
        values: dict[str, Callable[[], str]] = {
            "<API_URL>": lambda: self.stack.base_url,
            "<API_KEY>": lambda: self.stack.api_key,
            "<BATCH_ID>": batch,
            "<FLEET>": lambda: DEFAULT_FLEET,
            "<FILE_ID>": lambda: self._last(_FILE) or "no file was uploaded",
            "<DEAD_LETTER_ID>": lambda: self._last(_LETTER) or self._dead_letter(),
            ENGINE: lambda: self.engine,
        }
        for name, value in values.items():
            if name in source:
                source = source.replace(name, value())
        return source

    def _last(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.findall(self.seen)
        return found[-1] if found else None

    def _make_batches(self) -> None:
        """Run a batch in which some requests fail."""
        source = (ROOT / "examples/questions.jsonl").read_bytes()
        batch = self.stack.submit(self.stack.upload(source))
        until(lambda: self.stack.batch(batch)["status"] in FINAL, "the reader's batch ends")
        self.has_batches = True

    def _batch(self) -> str:
        return self._last(_BATCH) or self._failed_batch()

    def _failed_batch(self) -> str:
        page = self.stack.client.batches.list(limit=100).data
        return next(one.id for one in page if one.status in FINAL and one.error_file_id)

    def _batch_to_repeat(self) -> str:
        return until(self._with_open_letters, "an ended batch has dead letters", within=TIMEOUT)

    def _with_open_letters(self) -> str:
        rows = self.stack.query("SELECT DISTINCT batch_id FROM dead_letters WHERE state = 'open'")
        found = {f"batch_{row.batch_id.hex}" for row in rows}
        page = self.stack.client.batches.list(limit=100).data
        return next((one.id for one in page if one.status in FINAL and one.id in found), "")

    def _running_batch(self) -> str:
        return self.stack.submit(self.stack.upload(chat_file(50_000)))

    def _dead_letter(self) -> str:
        page = json.loads(self._lowtide("dead-letters", "list", "--state", "open", "--json"))
        first: str = page["data"][0]["id"]
        return first

    def _lowtide(self, *words: str) -> str:
        program = Path(sys.executable).with_name("lowtide")
        return subprocess.check_output([program, *words], env=self._environment(), text=True)

    def _log(self) -> str:
        log = self.folder / "data/lowtide.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
