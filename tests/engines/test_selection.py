from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lowtide.engines.flow import ByteBudget
from lowtide.engines.model import EngineRequest
from lowtide.engines.outcomes import Answered
from lowtide.engines.selection import build_engine
from lowtide.settings import EngineKind, Settings

if TYPE_CHECKING:
    from lowtide.engines.model import Engine


@pytest.mark.parametrize(
    ("kind", "name"),
    [("simulated", "SimulatedEngine"), ("openai", "UpstreamEngine"), ("noop", "NoopEngine")],
)
def test_setting_selects_engine(kind: str, name: str) -> None:
    assert type(build_engine(Settings(engine=EngineKind(kind)), ByteBudget(2**20))).__name__ == name


@pytest.mark.parametrize("module", ["engines.simulated", "engines.model", "objects.store"])
def test_light_modules_import_no_heavy_dependency(module: str) -> None:
    code = f"import sys, lowtide.{module}; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert not {"httpx", "httptools", "pydantic", "aiohttp", "jsonschema_rs"} & set(
        process.stdout.split()
    )


def test_simulated_faults_apply_to_named_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(simulated_faults="spot:500,infer-dedicated-2:503", engine_timeout=7)
    statuses = []
    for pool, name in (("spot", "1"), ("dedicated", "1"), ("dedicated", "2")):
        monkeypatch.setenv("FUNCTION_TARGET", f"infer_{pool}")
        monkeypatch.setenv("HOSTNAME", f"infer-{pool}-{name}")
        engine = build_engine(settings, ByteBudget(2**20))
        request = EngineRequest(0, "/v1/embeddings", b"{}", 1, spot=True)
        statuses.append(asyncio.run(_run_one(engine, request)).status_code)
    assert statuses == [500, 200, 503]


async def _run_one(engine: Engine, request: EngineRequest) -> Answered:
    [(_, outcome)] = [pair async for group in engine.run([request]) for pair in group]
    assert isinstance(outcome, Answered)
    return outcome
