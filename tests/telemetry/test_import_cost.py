"""Where tracing is off, no function imports anything of OpenTelemetry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each starts as under gunicorn: the application, then what the server's hooks import and build.
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
    ("function", "environment", "printed"),
    [
        pytest.param("create_batch", {}, "False False", id="http, off"),
        pytest.param("infer_spot", {}, "False False", id="worker, off"),
        pytest.param("infer_spot", ENDPOINT, "True True", id="worker, on"),
    ],
)
def test_only_what_is_switched_on_is_imported(
    function: str, environment: dict[str, str], printed: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    source = ROOT / "functions" / function / "main.py"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, function, str(source)],
        env={**kept, **DATABASE, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == printed
