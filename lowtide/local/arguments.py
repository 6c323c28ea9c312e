"""Command-line arguments of the runtime's own helper processes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Arguments:
    """Where the manifests and the state are, and the port to serve."""

    root: Path
    data_dir: Path
    port: int


def runtime_arguments(description: str) -> Arguments:
    """Parse `--root`, `--data-dir` and `--port`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    found = parser.parse_args()
    return Arguments(found.root, found.data_dir, found.port)
