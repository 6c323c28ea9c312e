"""What can go wrong on one machine; each message says how to fix it.

LocalError
├── AlreadyRunning  another stack holds this data directory
├── ForeignFolder   the data directory holds other files
├── PortInUse       another process listens on a port the stack was asked to use
├── BadManifest     a file in knative/ or keda/ cannot be run as it stands
├── MissingProgram  Prometheus or Alertmanager is not installed
└── StartFailed     a part of the stack did not come up
"""

from __future__ import annotations


class LocalError(Exception):
    """An error for the person at the terminal."""


class AlreadyRunning(LocalError):
    """Another stack holds this data directory."""


class ForeignFolder(LocalError):
    """The data directory holds files of something else."""


class PortInUse(LocalError):
    """Another process listens on a port that the stack was asked to use."""


class BadManifest(LocalError):
    """A file in `knative/` or `keda/` cannot be run as it stands."""


class MissingProgram(LocalError):
    """Prometheus or Alertmanager is not installed."""


class StartFailed(LocalError):
    """A part of the stack did not come up."""
