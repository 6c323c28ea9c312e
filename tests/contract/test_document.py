"""Schemathesis: whatever the OpenAPI document allows or forbids is answered as the document says.

The checks: no 5xx, no undocumented status, content type or header, bodies that fit their schemas,
data that breaks the schema is refused and data that fits is not, and nothing without a key.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.http.openapi import document
from lowtide.routes import ALL
from tests.e2e.questions import chat_file
from tests.e2e.stacks import running

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {
    "LOWTIDE_MAX_FILE_BYTES": "1000000",
    "LOWTIDE_SIMULATED_LATENCY": "0.02",
    "LOWTIDE_WORKER_POLL_CAP": "1",
    "LOWTIDE_SIMULATED_FAILURE_RATE": "0.5",
    "LOWTIDE_MAX_ATTEMPTS": "1",
}
FOLDER = Path(__file__).parent
SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))
SEED = os.environ.get("SCHEMATHESIS_SEED", "1")
PHASES = ("coverage", "fuzzing", "stateful")
OPERATIONS = [
    f"{method.upper()} {path}" for path, item in document(ALL)["paths"].items() for method in item
]


@dataclass(frozen=True)
class Report:
    """What a run found, for machines and for people."""

    found: dict[str, Any]
    text: str


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """One run of all phases on a stack that holds a file, its batch, results and dead letters."""
    folder = tmp_path_factory.mktemp("schemathesis")
    with running(SETTINGS) as stack:
        stack.follow(stack.submit(stack.upload(chat_file(20))))
        done = subprocess.run(
            [
                SCHEMATHESIS,
                *("--config-file", FOLDER / "schemathesis.toml"),
                "run",
                f"{stack.base_url}/openapi.json",
                *("--url", stack.base_url),
                *("--header", f"Authorization: Bearer {stack.api_key}"),
                *("--phases", ",".join(PHASES)),
                *("--seed", SEED),
                *("--report", "json", "--report-json-path", folder / "report.json"),
                "--no-color",
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        text = done.stdout + done.stderr
        assert (folder / "report.json").exists(), text
        yield Report(json.loads((folder / "report.json").read_bytes()), text)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_may_meet_a_limit(operation: str) -> None:
    method, path = operation.split()
    refused = document(ALL)["paths"][path][method.lower()]["responses"]["429"]
    assert "Retry-After" in refused["headers"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation(report: Report, operation: str) -> None:
    phases = report.found["valid_rates"][operation].values()
    assert any(sum(outcomes.values()) for outcomes in phases), "never called"
    failed = [failure for failure in report.found["failures"] if operation in failure["operations"]]
    assert not failed, report.text


@pytest.mark.parametrize("phase", PHASES)
def test_phase(report: Report, phase: str) -> None:
    assert report.found["phases"][phase]["status"] == "success", report.text


def test_the_run_came_to_its_end(report: Report) -> None:
    assert report.found["complete"], report.text
    assert report.found["errors"] == []
    assert report.found["operations"]["tested"] == len(OPERATIONS)
    assert report.found["warnings"]["missing_auth"] == []
    assert report.found["test_cases"]["generated"] > 500
