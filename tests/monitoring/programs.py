"""Prometheus, Alertmanager and their tools, from Debian packages."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

INSTALL = "apt-get install --no-install-recommends prometheus prometheus-alertmanager"
MONITORING = ("prometheus", "prometheus-alertmanager")


def missing(*programs: str) -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in programs if shutil.which(program) is None]


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where a program is not installed."""
    absent = missing(*programs)
    hint = "" if "kubectl" in absent else f": {INSTALL}"
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} is not installed{hint}")


def run(*command: str | Path) -> str:
    """Run a program, which must succeed; return what it prints."""
    result = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout
