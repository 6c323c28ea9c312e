"""Functions import OpenTelemetry only if tracing is on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Starts as under gunicorn: the application, then the imports of the server's hooks.
LOAD = """
import sys
import functions_framework
server = functions_framework.create_app(sys.argv[1], sys.argv[2])
import lowtide.serving
from lowtide.app import App
print(App.of_server(server).tracer.is_on, any(name.startswith("opentelemetry") for name in sys.modules))
"""
DATABASE = {"LOWTIDE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("function", "environment", "expected"),
    [
        pytest.param("create_batch", {}, "False False", id="http, off"),
        pytest.param("infer_spot", {}, "False False", id="worker, off"),
        pytest.param("infer_spot", ENDPOINT, "True True", id="worker, on"),
    ],
)
def test_opentelemetry_is_imported_only_if_tracing_is_on(
    function: str, environment: dict[str, str], expected: str
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    source = ROOT / "functions" / function / "main.py"
    process = subprocess.run(
        [sys.executable, "-c", LOAD, function, str(source)],
        env={**inherited, **DATABASE, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert process.stdout.strip() == expected
