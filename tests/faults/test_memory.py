"""The measurement of memory."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, cast

import pytest

from tests.faults.memory import memory_limit, peak_memory

MIB = 2**20
GROW = "data = b'x' * (64 * 2**20); del data; print('done', flush=True); input()"


@dataclass
class OneProgram:
    """A stand-in for a stack with one program."""

    pid: int

    def program(self, _: str) -> OneProgram:
        return self


@pytest.mark.parametrize("program", ["infer-spot-1", "infer-dedicated", "finalize", "portal"])
def test_every_program_has_memory_limit_of_whole_pages(program: str) -> None:
    limit = memory_limit(program)
    assert limit >= 256 * MIB
    assert limit % mmap.PAGESIZE == 0


def test_peak_remains_after_memory_is_freed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GROW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        peak = peak_memory(cast("Any", OneProgram(process.pid)), "grower")
        assert 64 * MIB < peak < 128 * MIB
        process.communicate("\n")
