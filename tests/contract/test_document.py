"""Schemathesis: the server conforms to its OpenAPI document.

The checks: no 5xx; no undocumented status, content type or header; bodies valid by their schemas;
invalid input rejected and valid input accepted; no access without a key.
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
    """The report of a run, as JSON and as text."""

    data: dict[str, Any]
    text: str


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """One run of all phases on a stack with a file, its batch, results and dead letters."""
    folder = tmp_path_factory.mktemp("schemathesis")
    with running(SETTINGS) as stack:
        stack.follow(stack.submit(stack.upload(chat_file(20))))
        process = subprocess.run(
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
        text = process.stdout + process.stderr
        assert (folder / "report.json").exists(), text
        yield Report(json.loads((folder / "report.json").read_bytes()), text)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_documents_429(operation: str) -> None:
    method, path = operation.split()
    response = document(ALL)["paths"][path][method.lower()]["responses"]["429"]
    assert "Retry-After" in response["headers"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_conforms_to_document(report: Report, operation: str) -> None:
    phases = report.data["valid_rates"][operation].values()
    assert any(sum(outcomes.values()) for outcomes in phases), "never called"
    failed = [failure for failure in report.data["failures"] if operation in failure["operations"]]
    assert not failed, report.text


@pytest.mark.parametrize("phase", PHASES)
def test_phase_succeeds(report: Report, phase: str) -> None:
    assert report.data["phases"][phase]["status"] == "success", report.text


def test_run_is_complete(report: Report) -> None:
    assert report.data["complete"], report.text
    assert report.data["errors"] == []
    assert report.data["operations"]["tested"] == len(OPERATIONS)
    assert report.data["warnings"]["missing_auth"] == []
    assert report.data["test_cases"]["generated"] > 500
