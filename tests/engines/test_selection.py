from __future__ import annotations

import subprocess
import sys

import pytest

from lowtide.engines.selection import build_engine
from lowtide.settings import EngineKind, Settings


@pytest.mark.parametrize(
    ("kind", "name"),
    [("simulated", "SimulatedEngine"), ("openai", "UpstreamEngine"), ("noop", "NoopEngine")],
)
def test_the_setting_chooses_the_engine(kind: str, name: str) -> None:
    assert type(build_engine(Settings(engine=EngineKind(kind)))).__name__ == name


@pytest.mark.parametrize("module", ["engines.simulated", "engines.noop", "objects.store"])
def test_light_modules_stay_light(module: str) -> None:
    code = f"import sys, lowtide.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not {"httpx", "httptools", "pydantic", "aiohttp"} & set(done.stdout.split())
