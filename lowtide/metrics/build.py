"""Which build a process runs."""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import Gauge

_BUILD = Gauge("lowtide_build_info", "1, with the version that this process runs.", ["version"])


def export() -> None:
    """Publish the version."""
    _BUILD.labels(version("lowtide")).set(1)
