"""The `lowtide` command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# NiceGUI wants to be tested when it sees pytest's variables.
_OTHERS = ("PYTEST_", "NICEGUI_")
_OURS = ("LOWTIDE_", "OTEL_", "OPENAI_", "PORT", "DATA_DIR", "FUNCTION_", "K_SINK")
LOWTIDE = str(Path(sys.executable).with_name("lowtide"))


def clean_environment(settings: Mapping[str, str] = {}) -> dict[str, str]:
    """Return this process's environment without anything that would change a stack, plus `settings`."""
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
    """Run `lowtide` to its end; it must succeed, or exit with 1 when it `fails`."""
    done = subprocess.run(
        [LOWTIDE, *map(str, arguments)],
        env=clean_environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == int(fails), f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
