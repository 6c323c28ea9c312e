"""Resident memory of a stack's processes, and the limits in their manifests."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import yaml

from lowtide.settings import Settings

if TYPE_CHECKING:
    from tests.e2e.stacks import LocalStack

_BASE: Final = Path(__file__).parents[2] / "knative" / "base"
_UNITS: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9, "": 1}
_REPLICA: Final = re.compile(r"-\d+$")
_PASSED: Final = ("MALLOC_", "THREADS", "LOWTIDE_DATABASE_POOL_SIZE")


def peak_memory(stack: LocalStack, program: str) -> int:
    """Return the peak resident memory of a program in bytes.

    The sum over the processes of its group counts shared pages once per process, so that it is an
    upper bound for the container.
    """
    pid = stack.program(program).pid
    assert pid is not None, f"{program} does not run"
    root = psutil.Process(pid)
    return sum(_peak(process.pid) for process in (root, *root.children(recursive=True)))


def reset_peaks(stack: LocalStack, program: str) -> None:
    """Reset the peak of `peak_memory`."""
    pid = stack.program(program).pid
    assert pid is not None, f"{program} does not run"
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def memory_limit(program: str) -> int:
    """Return the memory limit in a program's manifest in bytes; `program` may end in a replica number."""
    return _bytes(_container(_REPLICA.sub("", program))["resources"]["limits"]["memory"])


def environment_of(program: str) -> dict[str, str]:
    """Return the variables in a program's manifest that affect its memory."""
    variables = _container(program)["env"]
    return {one["name"]: one["value"] for one in variables if one["name"].startswith(_PASSED)}


def worker_bound() -> int:
    """Return the maximum bytes of a worker with default settings.

    The sum of its base, its budget and two copies of one answer of the largest size beyond it.
    """
    settings = Settings.model_fields
    budget: int = settings["worker_memory"].default
    largest: int = settings["max_response_bytes"].default
    return 128 * 2**20 + budget + 2 * largest


@cache
def _container(name: str) -> dict[str, Any]:
    for path in _BASE.rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if not document or document.get("metadata", {}).get("name") != name:
                continue
            template = document.get("spec", {}).get("template", {})
            for container in template.get("spec", {}).get("containers", ()):
                return dict(container)
    raise AssertionError(f"there is no manifest of {name}")


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _bytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", quantity)
    assert match, quantity
    return int(match[1]) * _UNITS[match[2]]
