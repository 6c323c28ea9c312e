"""Selection of the engine that the settings ask for."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, assert_never

from lowtide.settings import EngineKind

if TYPE_CHECKING:
    from lowtide.engines.flow import ByteBudget
    from lowtide.engines.load import LoadMeter
    from lowtide.engines.model import Engine
    from lowtide.engines.simulation.faults import Faults
    from lowtide.settings import Settings


def build_engine(settings: Settings, budget: ByteBudget, meter: LoadMeter | None = None) -> Engine:
    """Return the engine of `settings.engine`; import only that engine's libraries.

    `meter` measures the requests at a real engine.
    """
    match settings.engine:
        case EngineKind.SIMULATED:
            from lowtide.engines.simulated import SimulatedEngine

            return SimulatedEngine(
                seed=settings.simulated_seed,
                latency=settings.simulated_latency,
                tokens=settings.simulated_tokens,
                failure_rate=settings.simulated_failure_rate,
                interruption_rate=settings.simulated_interruption_rate,
                concurrency=settings.assumed_concurrency,
                faults=_faults(settings),
            )
        case EngineKind.OPENAI:
            from lowtide.engines.upstream import UpstreamEngine

            return UpstreamEngine(
                settings.engine_url,
                api_key=settings.engine_api_key.get_secret_value(),
                timeout=settings.engine_timeout,
                concurrency=settings.max_concurrency,
                max_response_bytes=settings.max_response_bytes,
                budget=budget,
                meter=meter,
            )
        case EngineKind.NOOP:
            from lowtide.engines.model import NoopEngine

            return NoopEngine()
        case _:
            assert_never(settings.engine)


def _faults(settings: Settings) -> Faults | None:
    """Return the faults of this worker; in Kubernetes, HOSTNAME is the pod's name."""
    if not settings.simulated_faults:
        return None
    from lowtide.core.fault_plans import Worker, parse_faults
    from lowtide.engines.simulation.faults import Faults, Limits

    pool = os.environ.get("FUNCTION_TARGET", "").removeprefix("infer_")
    return Faults(
        parse_faults(settings.simulated_faults),
        Worker(pool, os.environ.get("HOSTNAME") or socket.gethostname()),
        seed=settings.simulated_seed,
        limits=Limits(settings.engine_timeout, settings.max_response_bytes),
    )
