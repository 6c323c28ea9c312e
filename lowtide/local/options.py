"""Options, errors and arguments of the local runtime."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
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
    default channel does.
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
