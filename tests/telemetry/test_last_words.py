"""On SIGTERM, a function under gunicorn sends its spans, and exits even without a collector."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from lowtide.local.ports import HOST, free_port
from tests.e2e.collector import collecting
from tests.e2e.command import clean_environment
from tests.e2e.waiting import until

ROOT = Path(__file__).resolve().parents[2]
CALLER = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.slow
@pytest.mark.parametrize("collector_is_down", [False, True], ids=["collector", "no collector"])
def test_pending_spans_are_sent_on_shutdown(collector_is_down: bool) -> None:
    with collecting() as collector:
        url = f"http://{HOST}:{free_port()}" if collector_is_down else collector.url
        port, health = free_port(), free_port()
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            # No export before shutdown.
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
            "LOWTIDE_DATABASE_URL": f"postgresql://nobody@{HOST}:{free_port()}/none",
            "LOWTIDE_HEALTH_PORT": str(health),
            "HOST": HOST,
            "PORT": str(port),
            "FUNCTION_SOURCE": str(ROOT / "functions" / "read" / "main.py"),
            "FUNCTION_TARGET": "read",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "python:lowtide.serving",
             "functions_framework:create_app()"],
            env=clean_environment(settings) | {"PYTHONPATH": os.fspath(ROOT)},
            cwd=ROOT,
        )  # fmt: skip
        try:

            def answers() -> bool:
                try:
                    response = httpx.get(
                        f"http://{HOST}:{port}/health/live", headers={"traceparent": CALLER}
                    )
                except httpx.HTTPError:
                    return False
                return response.status_code == 200

            until(answers, "the function answers", within=30)
            assert collector.spans == []
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert time.monotonic() - began < 10
        finally:
            process.kill()
            process.wait()
        exported = {(span.name, span.service, span.trace_id) for span in collector.spans}
        assert exported == (
            set() if collector_is_down else {("GET /health/live", "lowtide-read", "a" * 32)}
        )
