"""Options, errors and arguments of the local runtime."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_data_dir

import lowtide

if TYPE_CHECKING:
    from collections.abc import Mapping


class LocalError(Exception):
    """The base of errors that are shown at the terminal."""


class AlreadyRunning(LocalError):
    """Another stack uses the data directory."""


class ForeignFolder(LocalError):
    """The data directory holds files that are not Lowtide's."""


class PortInUse(LocalError):
    """Another process listens on a port of the stack."""


class BadManifest(LocalError):
    """A file in `knative/`, `keda/` or `monitoring/` cannot be run locally."""


class MissingProgram(LocalError):
    """Prometheus or Alertmanager is not installed."""


class OtherCells(LocalError):
    """The data directory is that of another number of cells."""


class StartFailed(LocalError):
    """A part of the stack did not come up."""


def default_root() -> Path:
    """Return the checkout that contains this package, `knative/` and `functions/`."""
    return Path(lowtide.__file__).resolve().parent.parent


def default_data_dir() -> Path:
    """Return `DATA_DIR` of the environment, else Lowtide's directory in the user's data."""
    return Path(os.environ.get("DATA_DIR") or user_data_dir("lowtide")).expanduser()


def object_store_url(data_dir: Path) -> str:
    """Return the URL of a stack's object store, unless the user set another."""
    return (data_dir / "objects").resolve().as_uri()


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one stack.

    `quiet` sends the output of processes to `lowtide.log` instead of the terminal. `portal_port`
    defaults to `port` + 10; `ready_timeout` is in seconds. `prometheus` and `alertmanager` are the
    programs that `monitoring` runs if they are not on the PATH. `via` maps `postgres` and `broker`
    to the port of a proxy in front of them, for functions, workers and broker. A
    `synchronous_broker` stores no event and answers after all subscribers have, as Knative's
    default channel does. With `cells`, the stack is a front on `port`, and that many cells: the API of
    cell 2 is on `port` + 2, its portal on `portal_port` + 2.
    """

    root: Path = field(default_factory=default_root)
    data_dir: Path = field(default_factory=default_data_dir)
    port: int = 8080
    portal_port: int | None = None
    quiet: bool = False
    ready_timeout: float = 60.0
    monitoring: bool = False
    prometheus: Path | None = None
    alertmanager: Path | None = None
    synchronous_broker: bool = False
    via: Mapping[str, int] = field(default_factory=dict)
    cells: int = 0

    @property
    def base_url(self) -> str:
        """The base URL of the API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def portal_url(self) -> str:
        """The base URL of the portal."""
        return f"http://127.0.0.1:{self.portal}"

    @property
    def portal(self) -> int:
        """The portal's port."""
        return self.port + 10 if self.portal_port is None else self.portal_port

    @property
    def start_timeout(self) -> float:
        """The seconds that the whole stack may take to start: its cells start together."""
        return self.ready_timeout * max(1, self.cells)

    def of_cell(self, number: int) -> Options:
        """Return the options of one of the cells."""
        return replace(
            self,
            data_dir=self.data_dir / f"cell-{number}",
            port=self.port + number,
            portal_port=self.portal + number,
            ready_timeout=self.start_timeout,
            quiet=False,
            cells=0,
        )

    def command(self) -> tuple[str, ...]:
        """Return the command that runs the stack in the foreground."""
        return (
            sys.executable,
            "-m",
            "lowtide.local",
            *("--root", str(self.root)),
            *("--data-dir", str(self.data_dir.resolve())),
            *("--port", str(self.port)),
            *("--portal-port", str(self.portal)),
            *("--ready-timeout", str(self.ready_timeout)),
            *(["--monitoring"] if self.monitoring else []),
            *(["--prometheus", str(self.prometheus)] if self.prometheus else []),
            *(["--alertmanager", str(self.alertmanager)] if self.alertmanager else []),
            *(["--synchronous-broker"] if self.synchronous_broker else []),
            *(f"--via={name}={port}" for name, port in self.via.items()),
            *("--cells", str(self.cells)),
        )


@dataclass(frozen=True, slots=True)
class Arguments:
    """The directories of the manifests and the state, and the port to serve."""

    root: Path
    data_dir: Path
    port: int


def runtime_arguments(description: str) -> Arguments:
    """Parse `--root`, `--data-dir` and `--port`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    return Arguments(args.root, args.data_dir, args.port)
