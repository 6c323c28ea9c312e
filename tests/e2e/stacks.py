"""A whole local stack: started by the command, used over HTTP, looked into and broken from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from openai import OpenAI
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from lowtide.database.connections import engine_of
from lowtide.local import files
from lowtide.local.bootstrap import DATABASE
from lowtide.local.ports import HOST, free_port, release_ports
from tests import oracle
from tests.e2e.command import lowtide
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine, Row

    from tests.oracle import ResponseCheck

FINAL = {"completed", "failed", "expired", "cancelled"}
_PROGRAM_FIELDS = ("name", "pid", "state", "restarts", "port", "health_port")


@dataclass(frozen=True)
class Program:
    """One process group of a stack, as `lowtide status` tells of it."""

    name: str
    pid: int | None
    state: str
    restarts: int
    port: int | None
    health_port: int | None


@dataclass
class LocalStack:
    """One stack; `settings` are its `LOWTIDE_*` variables."""

    data_dir: Path
    settings: Mapping[str, str]
    port: int = field(default_factory=free_port)
    portal_port: int = field(default_factory=free_port)
    monitoring: bool = False
    synchronous_broker: bool = False
    seen_workers: set[int] = field(default_factory=set)
    _database: Engine | None = None

    # Its life

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `lowtide up` is told."""
        ports = ("--port", str(self.port), "--portal-port", str(self.portal_port))
        switches = {
            "--monitoring": self.monitoring,
            "--synchronous-broker": self.synchronous_broker,
        }
        return (*ports, *self._data, *(name for name, is_on in switches.items() if is_on))

    def up(self) -> None:
        """Start it, or start it again, with `lowtide up --detach`."""
        lowtide("up", "--detach", *self.arguments, settings=self.settings)

    def down(self) -> None:
        """Stop it with `lowtide down`."""
        lowtide("down", *self._data)
        self.forget_connections()

    def discard(self) -> None:
        """Stop it, and remove everything it stored."""
        if "client" in self.__dict__:
            self.client.close()
        self.down()
        release_ports(self.port, self.portal_port)
        shutil.rmtree(self.data_dir)

    def status(self) -> dict[str, Any]:
        """Return what `lowtide status --json` prints."""
        found: dict[str, Any] = json.loads(lowtide("status", "--json", *self._data).stdout)
        return found

    def is_ready(self) -> bool:
        """Whether everything has started."""
        path = self.data_dir / "state.json"
        return path.exists() and json.loads(path.read_bytes())["ready"]

    def log(self) -> str:
        """Return the log of all its processes."""
        path = self.data_dir / "lowtide.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # Its API

    @property
    def base_url(self) -> str:
        """Where the API answers."""
        return f"http://{HOST}:{self.port}"

    @property
    def api_key(self) -> str:
        """The local default's key."""
        return self._secrets.api_key

    @cached_property
    def client(self) -> OpenAI:
        """The official client; it tries again for about a minute while something is away."""
        return OpenAI(base_url=f"{self.base_url}/v1", api_key=self.api_key, max_retries=12)

    def upload(self, data: bytes) -> str:
        """Upload a batch file, and return its id."""
        return self.client.files.create(file=("input.jsonl", data), purpose="batch").id

    def submit(self, file: str, endpoint: Any = "/v1/chat/completions") -> str:
        """Create a batch, and return its id."""
        return self.client.batches.create(
            input_file_id=file, endpoint=endpoint, completion_window="24h"
        ).id

    def batch(self, batch: str) -> dict[str, Any]:
        """Return a Batch object."""
        return self.client.batches.retrieve(batch).to_dict()

    def follow(self, batch: str, *, within: float = 120.0) -> list[dict[str, Any]]:
        """Watch a batch to its end; return every state seen, all of which were sane."""
        seen: list[dict[str, Any]] = []

        def look() -> bool:
            seen.append(self.batch(batch))
            self.seen_workers |= {one.pid for one in self.workers() if one.pid is not None}
            return seen[-1]["status"] in FINAL

        until(look, f"{batch} ends", within=within, every=0.1)
        oracle.check_history(seen)
        return seen

    def content(self, file: str | None) -> bytes:
        """Download a file; no file has no bytes."""
        return self.client.files.content(file).read() if file else b""

    def finish(
        self, batch: str, source: bytes, *, answers: ResponseCheck, within: float = 120.0
    ) -> dict[str, Any]:
        """Wait for a batch to complete, and check all that was promised of it; return it."""
        ended = self.follow(batch, within=within)[-1]
        output, errors = (self.content(ended[f"{role}_file_id"]) for role in ("output", "error"))
        oracle.check(ended, source, output, errors, answers=answers)
        self._check_nothing_left(batch, ended)
        return ended

    def _check_nothing_left(self, batch: str, ended: Mapping[str, Any]) -> None:
        """Each line has one result, counted once, and nothing of the batch waits anywhere."""
        counts = ended["request_counts"]
        id_ = batch.removeprefix("batch_")
        rows = self.query(
            """
            SELECT (SELECT count(*) FROM requests WHERE batch_id = :batch),
              (SELECT count(*) FROM results WHERE batch_id = :batch),
              (SELECT sum(completed) FROM tallies WHERE batch_id = :batch),
              (SELECT sum(failed) FROM tallies WHERE batch_id = :batch),
              (SELECT count(*) FROM queue WHERE batch_id = :batch),
              (SELECT count(*) FROM claims WHERE batch_id = :batch)
            """,
            batch=id_,
        )
        total = counts["total"]
        assert tuple(rows[0]) == (total, total, counts["completed"], counts["failed"], 0, 0)

    # Its insides

    @property
    def database(self) -> Engine:
        """Connections as the superuser."""
        if self._database is not None:
            return self._database
        url = make_url(f"postgresql://{HOST}/{DATABASE}").set(
            username=files.SUPERUSER,
            password=self._secrets.passwords[files.SUPERUSER],
            port=self.program("postgres").port,
        )
        self._database = engine_of(
            url, isolation_level="AUTOCOMMIT", pool_pre_ping=True, connect_args={"timeout": 10}
        )
        return self._database

    def query(self, statement: str, **parameters: object) -> Sequence[Row[*tuple[Any, ...]]]:
        """Return the rows of a query, past row-level security."""
        with self.database.connect() as connection:
            return connection.execute(text(statement), parameters).all()

    def attempt(self, statement: str, **parameters: object) -> Sequence[Row[*tuple[Any, ...]]]:
        """Return the rows of a query; none while the database is away."""
        try:
            return self.query(statement, **parameters)
        except (DBAPIError, OSError):
            return ()

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Keep everybody from writing to a table, so that whoever wants to stands still."""
        with self.database.connect().execution_options(
            isolation_level="READ COMMITTED"
        ) as connection:
            connection.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
            yield

    def waits_for_lock(self, function: str) -> bool:
        """Whether a function's statement waits for a lock."""
        return bool(
            self.attempt(
                """SELECT 1 FROM pg_stat_activity
                   WHERE application_name = :name AND wait_event_type = 'Lock'""",
                name=f"lowtide {function}",
            )
        )

    def objects(self) -> set[str]:
        """Return the names of all that the object store holds, finished or not."""
        folder = self.data_dir / "objects"
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    def programs(self) -> dict[str, Program]:
        """Return every process group by name, from the state file."""
        state = json.loads((self.data_dir / "state.json").read_bytes())
        found = [Program(*(one[name] for name in _PROGRAM_FIELDS)) for one in state["processes"]]
        return {program.name: program for program in found}

    def program(self, name: str) -> Program:
        """Return one process group."""
        return self.programs()[name]

    def workers(self, pool: str = "spot") -> list[Program]:
        """Return the workers of a pool that are not on their way out."""
        return [
            program
            for name, program in self.programs().items()
            if name.startswith(f"infer-{pool}-") and program.state not in {"stopping", "stopped"}
        ]

    def kill(self, name: str) -> None:
        """SIGKILL a process: gunicorn's master and workers alike, or the postmaster alone."""
        program = self.program(name)
        assert program.pid is not None, f"{name} does not run"
        if name == "postgres":
            os.kill(program.pid, signal.SIGKILL)
        else:
            os.killpg(program.pid, signal.SIGKILL)

        # A kill that hits nothing proves nothing.
        def came_back() -> bool:
            now = self.programs().get(name)
            return now is None or now.restarts > program.restarts

        until(came_back, f"the supervisor notices that {name} was killed")

    def catch(self, name: str, look: Callable[[], object]) -> bool:
        """Stop a process while `look` is true, which is asked again once it stands still.

        Returns whether that succeeded; the process goes on if not. Kill it, or let it `go_on`.
        """
        pid = self.program(name).pid
        if pid is None or not look():
            return False
        os.killpg(pid, signal.SIGSTOP)
        if look():
            return True
        os.killpg(pid, signal.SIGCONT)
        return False

    def go_on(self, name: str) -> None:
        """Let a process that was caught go on."""
        pid = self.program(name).pid
        assert pid is not None
        os.killpg(pid, signal.SIGCONT)

    def forget_connections(self) -> None:
        """Drop connections to a database that stops; after the next start it is at another port."""
        if self._database is not None:
            self._database.dispose()
        self._database = None

    @property
    def supervisor(self) -> psutil.Process:
        """The process behind `lowtide up`."""
        state = json.loads((self.data_dir / "state.json").read_bytes())
        return psutil.Process(state["pid"])

    @property
    def _data(self) -> tuple[str, str]:
        return ("--data-dir", str(self.data_dir))

    @cached_property
    def _secrets(self) -> files.Secrets:
        found = files.read(self.data_dir)
        assert found is not None
        return found


def new_stack(
    settings: Mapping[str, str], *, monitoring: bool = False, synchronous_broker: bool = False
) -> LocalStack:
    """Return a stack that was never started, in a folder of its own."""
    return LocalStack(
        Path(tempfile.mkdtemp(prefix="lowtide-e2e-")),
        settings,
        monitoring=monitoring,
        synchronous_broker=synchronous_broker,
    )


@contextmanager
def running(
    settings: Mapping[str, str], *, monitoring: bool = False, synchronous_broker: bool = False
) -> Iterator[LocalStack]:
    """Run a new stack for the length of the block, with `monitoring` or a `synchronous_broker` or without."""
    stack = new_stack(settings, monitoring=monitoring, synchronous_broker=synchronous_broker)
    try:
        stack.up()
        yield stack
    finally:
        stack.discard()
