"""Benchmarks are programs beside the package: what they consist of is imported by plain names."""

from __future__ import annotations

import sys
from pathlib import Path

# Last, so that no module of theirs takes the place of another's.
sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
