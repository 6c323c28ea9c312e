"""The benchmark of retention at a small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_database_returns_to_its_size_by_short_statements() -> None:
    command = [sys.executable, "-m", "bench.retention", "--batches", "3", "--lines", "5000"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["size_largest"] > 1.5 * found["size_before"]
    assert found["size_ratio"] <= 1.05
    assert found["longest_statement_ms"] < 100
