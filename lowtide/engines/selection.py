"""Which engine the settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from lowtide.settings import EngineKind

if TYPE_CHECKING:
    from lowtide.ports import Engine
    from lowtide.settings import Settings


def build_engine(settings: Settings) -> Engine:
    """Return the engine of `settings.engine`; only that one's libraries are imported."""
    match settings.engine:
        case EngineKind.SIMULATED:
            from lowtide.engines.simulated import SimulatedEngine

            return SimulatedEngine(
                seed=settings.simulated_seed,
                latency=settings.simulated_latency,
                tokens=settings.simulated_tokens,
                failure_rate=settings.simulated_failure_rate,
                interruption_rate=settings.simulated_interruption_rate,
                concurrency=settings.worker_concurrency,
            )
        case EngineKind.OPENAI:
            from lowtide.engines.upstream import UpstreamEngine

            return UpstreamEngine(
                settings.engine_url,
                api_key=settings.engine_api_key.get_secret_value(),
                timeout=settings.engine_timeout,
                concurrency=settings.worker_concurrency,
            )
        case EngineKind.NOOP:
            from lowtide.engines.noop import NoopEngine

            return NoopEngine()
        case _:
            assert_never(settings.engine)
