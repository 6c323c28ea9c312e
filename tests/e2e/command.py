"""The `lowtide` command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# NiceGUI switches to its test mode when pytest's variables are set.
_OTHERS = ("PYTEST_", "NICEGUI_")
_OURS = ("LOWTIDE_", "OTEL_", "OPENAI_", "PORT", "DATA_DIR", "FUNCTION_", "K_SINK")
LOWTIDE = str(Path(sys.executable).with_name("lowtide"))


def clean_environment(settings: Mapping[str, str] = {}) -> dict[str, str]:
    """Return this process's environment without variables that affect a stack, plus `settings`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(_OURS + _OTHERS)
    }
    return {**kept, **settings}


def lowtide(
    *arguments: str | Path,
    settings: Mapping[str, str] = {},
    fails: bool = False,
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Run `lowtide` and assert that it exits with 0, or with 1 if it `fails`."""
    process = subprocess.run(
        [LOWTIDE, *map(str, arguments)],
        env=clean_environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert process.returncode == int(fails), (
        f"exit {process.returncode}\n{process.stdout}\n{process.stderr}"
    )
    return process
