"""A whole local stack: started by the CLI, used over HTTP, inspected and broken from outside."""

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

from lowtide.core.ids import cell_of, parse_batch_id
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
    """A process group of a stack, as `lowtide status` reports it."""

    name: str
    pid: int | None
    state: str
    restarts: int
    port: int | None
    health_port: int | None


@dataclass
class LocalStack:
    """A local stack; `settings` are its `LOWTIDE_*` variables."""

    data_dir: Path
    settings: Mapping[str, str]
    port: int = 0
    portal_port: int = 0
    cells: int = 0
    monitoring: bool = False
    synchronous_broker: bool = False
    seen_workers: set[int] = field(default_factory=set)
    _database: Engine | None = None

    def __post_init__(self) -> None:
        self.port = self.port or free_port(following=self.cells)
        self.portal_port = self.portal_port or free_port(following=self.cells)

    @cached_property
    def installations(self) -> Sequence[LocalStack]:
        """Its cells, each a stack of its own; itself without cells."""
        return [self._cell(number) for number in range(1, self.cells + 1)] or [self]

    def owner(self, batch: str) -> LocalStack:
        """Return the cell that a batch was created in; itself without cells."""
        id_ = parse_batch_id(batch)
        assert id_ is not None, batch
        number = cell_of(id_) if self.cells else 1
        assert number is not None, batch
        return self.installations[number - 1]

    def _cell(self, number: int) -> LocalStack:
        return LocalStack(
            self.data_dir / f"cell-{number}",
            self.settings,
            self.port + number,
            self.portal_port + number,
        )

    # Lifecycle

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of `lowtide up`."""
        ports = ("--port", str(self.port), "--portal-port", str(self.portal_port))
        switches = {
            "--monitoring": self.monitoring,
            "--synchronous-broker": self.synchronous_broker,
        }
        cells = ("--cells", str(self.cells)) if self.cells else ()
        return (*ports, *self._data, *cells, *(name for name, is_on in switches.items() if is_on))

    def up(self) -> None:
        """Start or restart it with `lowtide up --detach`."""
        timeout = 120.0 * max(1, self.cells)
        lowtide("up", "--detach", *self.arguments, settings=self.settings, timeout=timeout)

    def down(self) -> None:
        """Stop it with `lowtide down`."""
        lowtide("down", *self._data)
        self.forget_connections()

    def discard(self) -> None:
        """Stop it and remove its data."""
        self.down()
        for each in self.installations:
            each.forget_data()
        self.forget_data()
        for number in range(self.cells + 1):
            release_ports(self.port + number, self.portal_port + number)
        shutil.rmtree(self.data_dir)

    def status(self) -> dict[str, Any]:
        """Return the output of `lowtide status --json`."""
        status: dict[str, Any] = json.loads(lowtide("status", "--json", *self._data).stdout)
        return status

    def is_ready(self) -> bool:
        """True once every process has started."""
        path = self.data_dir / "state.json"
        return path.exists() and json.loads(path.read_bytes())["ready"]

    def log(self) -> str:
        """Return the combined log of its processes."""
        path = self.data_dir / "lowtide.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # API

    @property
    def base_url(self) -> str:
        """The URL of the API."""
        return f"http://{HOST}:{self.port}"

    @property
    def api_key(self) -> str:
        """The API key of the local default tenant."""
        return self._secrets.api_key

    @cached_property
    def client(self) -> OpenAI:
        """The OpenAI client; it retries for about a minute while a process is down."""
        return OpenAI(base_url=f"{self.base_url}/v1", api_key=self.api_key, max_retries=12)

    def upload(self, data: bytes) -> str:
        """Upload a batch file and return its id."""
        return self.client.files.create(file=("input.jsonl", data), purpose="batch").id

    def submit(self, file: str, endpoint: Any = "/v1/chat/completions") -> str:
        """Create a batch and return its id."""
        return self.client.batches.create(
            input_file_id=file, endpoint=endpoint, completion_window="24h"
        ).id

    def batch(self, batch: str) -> dict[str, Any]:
        """Return a Batch object."""
        return self.client.batches.retrieve(batch).to_dict()

    def follow(self, batch: str, *, within: float = 120.0) -> list[dict[str, Any]]:
        """Poll a batch until it ends; return every observed state after checking each."""
        states: list[dict[str, Any]] = []

        def poll() -> bool:
            states.append(self.batch(batch))
            self.seen_workers |= {one.pid for one in self.workers() if one.pid is not None}
            return states[-1]["status"] in FINAL

        until(poll, f"{batch} ends", within=within, every=0.1)
        oracle.check_history(states)
        return states

    def content(self, file: str | None) -> bytes:
        """Download a file; return no bytes for None."""
        return self.client.files.content(file).read() if file else b""

    def finish(
        self, batch: str, source: bytes, *, answers: ResponseCheck, within: float = 120.0
    ) -> dict[str, Any]:
        """Wait for a batch to complete, check every invariant on it, and return it."""
        final = self.follow(batch, within=within)[-1]
        output, errors = (self.content(final[f"{role}_file_id"]) for role in ("output", "error"))
        oracle.check(final, source, output, errors, answers=answers)
        self._check_nothing_left(batch, final)
        return final

    def _check_nothing_left(self, batch: str, final: Mapping[str, Any]) -> None:
        """Assert one result per request, counted once, and no row left in queue or claims."""
        counts = final["request_counts"]
        rows = self.owner(batch).query(
            """
            SELECT (SELECT count(*) FROM requests WHERE batch_id = :batch),
              (SELECT count(*) FROM results WHERE batch_id = :batch),
              (SELECT sum(completed) FROM tallies WHERE batch_id = :batch),
              (SELECT sum(failed) FROM tallies WHERE batch_id = :batch),
              (SELECT count(*) FROM queue WHERE batch_id = :batch),
              (SELECT count(*) FROM claims WHERE batch_id = :batch)
            """,
            batch=batch.removeprefix("batch_"),
        )
        total = counts["total"]
        assert tuple(rows[0]) == (total, total, counts["completed"], counts["failed"], 0, 0)

    # Internals

    @property
    def database(self) -> Engine:
        """Superuser connections."""
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
        """Return the rows of a query, bypassing row-level security."""
        with self.database.connect() as connection:
            return connection.execute(text(statement), parameters).all()

    def attempt(self, statement: str, **parameters: object) -> Sequence[Row[*tuple[Any, ...]]]:
        """Return the rows of a query; none while the database is down."""
        try:
            return self.query(statement, **parameters)
        except (DBAPIError, OSError):
            return ()

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Block every write to a table for the block."""
        with self.database.connect().execution_options(
            isolation_level="READ COMMITTED"
        ) as connection:
            connection.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
            yield

    def waits_for_lock(self, function: str) -> bool:
        """Return whether a statement of a function waits for a lock."""
        return bool(
            self.attempt(
                """SELECT 1 FROM pg_stat_activity
                   WHERE application_name = :name AND wait_event_type = 'Lock'""",
                name=f"lowtide {function}",
            )
        )

    def objects(self) -> set[str]:
        """Return the names of all stored objects, including partial uploads."""
        folder = self.data_dir / "objects"
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    def programs(self) -> dict[str, Program]:
        """Return the process groups of the state file by name."""
        state = json.loads((self.data_dir / "state.json").read_bytes())
        programs = [Program(*(one[name] for name in _PROGRAM_FIELDS)) for one in state["processes"]]
        return {program.name: program for program in programs}

    def program(self, name: str) -> Program:
        """Return a process group."""
        return self.programs()[name]

    def workers(self, pool: str = "spot") -> list[Program]:
        """Return the workers of a pool that are not stopping."""
        return [
            program
            for name, program in self.programs().items()
            if name.startswith(f"infer-{pool}-") and program.state not in {"stopping", "stopped"}
        ]

    def kill(self, name: str) -> None:
        """SIGKILL a process: gunicorn's master and workers, or only the postmaster."""
        program = self.program(name)
        assert program.pid is not None, f"{name} does not run"
        if name == "postgres":
            os.kill(program.pid, signal.SIGKILL)
        else:
            os.killpg(program.pid, signal.SIGKILL)

        # A kill that hits no process proves nothing.
        def was_restarted() -> bool:
            now = self.programs().get(name)
            return now is None or now.restarts > program.restarts

        until(was_restarted, f"the supervisor restarts or drops {name}")

    def freeze_while(self, name: str, condition: Callable[[], object]) -> bool:
        """SIGSTOP a process if `condition` holds both before and after the signal.

        Return whether it is frozen now; if not, it was resumed. End with `kill` or `resume`.
        """
        pid = self.program(name).pid
        if pid is None or not condition():
            return False
        os.killpg(pid, signal.SIGSTOP)
        if condition():
            return True
        os.killpg(pid, signal.SIGCONT)
        return False

    def resume(self, name: str) -> None:
        """Resume a frozen process."""
        pid = self.program(name).pid
        assert pid is not None
        os.killpg(pid, signal.SIGCONT)

    def forget_connections(self) -> None:
        """Drop the database connections; the port changes with the next start."""
        if self._database is not None:
            self._database.dispose()
        self._database = None

    def forget_data(self) -> None:
        """Forget the data directory's secrets and all connections: another may be in its place."""
        self.forget_connections()
        if "client" in self.__dict__:
            self.client.close()
        for name in ("client", "_secrets"):
            self.__dict__.pop(name, None)

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
        secrets = files.read(self.data_dir)
        assert secrets is not None
        return secrets


def new_stack(
    settings: Mapping[str, str],
    *,
    monitoring: bool = False,
    synchronous_broker: bool = False,
    cells: int = 0,
) -> LocalStack:
    """Return a stack that is not started yet, in its own folder."""
    return LocalStack(
        Path(tempfile.mkdtemp(prefix="lowtide-e2e-")),
        settings,
        monitoring=monitoring,
        synchronous_broker=synchronous_broker,
        cells=cells,
    )


@contextmanager
def running(
    settings: Mapping[str, str],
    *,
    monitoring: bool = False,
    synchronous_broker: bool = False,
    cells: int = 0,
) -> Iterator[LocalStack]:
    """Run a new stack for the block: with `monitoring`, a `synchronous_broker`, `cells` and a front."""
    stack = new_stack(
        settings, monitoring=monitoring, synchronous_broker=synchronous_broker, cells=cells
    )
    try:
        stack.up()
        yield stack
    finally:
        stack.discard()
