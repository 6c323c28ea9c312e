"""Which settings do not fit an engine; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from lowtide.engines.check import EngineReport
    from lowtide.settings import Settings


_BYTES_PER_TOKEN: Final = 8
"""More than any tokenizer's average for text: a longer text cannot fit into the context."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """A setting that does not fit an engine, and what to do."""

    setting: str
    text: str


def misfits(report: EngineReport, settings: Settings, models: Collection[str] = ()) -> list[Misfit]:
    """Return the settings that do not fit the engine; `models` are names that requests will use."""
    return [
        *_endpoint_misfits(report),
        *_model_misfits(report, models),
        *_concurrency_misfits(report, settings),
        *_length_misfits(report, settings),
    ]


def _endpoint_misfits(report: EngineReport) -> list[Misfit]:
    failing = [name for name, reason in report.endpoints.items() if reason]
    if not failing:
        return []
    working = ",".join(name for name, reason in report.endpoints.items() if not reason)
    fix = f"set it to {working}" if working else "no endpoint works"
    text = f"Batches to {', '.join(failing)} are accepted, and all their requests fail: {fix}."
    return [Misfit("LOWTIDE_ENDPOINTS", text)]


def _model_misfits(report: EngineReport, models: Collection[str]) -> list[Misfit]:
    missing = [name for name in models if not report.serves([name])]
    served = sorted(model.name for model in report.models)
    if not missing:
        return []
    text = f"{', '.join(missing)} is not served; served: {', '.join(served) or 'none'}."
    return [Misfit("model", text)]


def _concurrency_misfits(report: EngineReport, settings: Settings) -> list[Misfit]:
    found = []
    concurrency, slots = settings.worker_concurrency, report.max_running
    if slots is not None and isinstance(concurrency, int) and concurrency != slots:
        effect = (
            "the rest of the engine stays idle"
            if concurrency < slots
            else "more wait in the engine than run, and their time counts as LOWTIDE_ENGINE_TIMEOUT"
        )
        text = f"{concurrency} requests in flight, but the engine runs {slots} at once: {effect}."
        found.append(Misfit("LOWTIDE_WORKER_CONCURRENCY", f"{text} Set it to auto."))
    for name in ("spot_replicas", "dedicated_replicas"):
        replicas = getattr(settings, name)
        if replicas > 1 and name in settings.model_fields_set:
            text = f"{replicas} workers share this one engine: one worker per engine is enough."
            found.append(Misfit(f"LOWTIDE_{name.upper()}", text))
    return found


def _length_misfits(report: EngineReport, settings: Settings) -> list[Misfit]:
    contexts = [model.context for model in report.models if model.context is not None]
    if not contexts:
        return []
    found, context = [], max(contexts)
    if report.token_seconds is not None:
        seconds = context * report.token_seconds
        if seconds > settings.engine_timeout:
            text = (
                f"An answer that fills the context of {context:,} tokens takes about "
                f"{seconds:,.0f} s at the measured {report.token_seconds * 1000:.0f} ms per token, "
                f"and is given up after {settings.engine_timeout:g} s: limit max_tokens, or raise it."
            )
            found.append(Misfit("LOWTIDE_ENGINE_TIMEOUT", text))
    text_bytes = context * _BYTES_PER_TOKEN
    if not report.takes_images and settings.max_line_bytes > text_bytes:
        text = (
            f"Text of over {text_bytes:,} bytes does not fit into {context:,} tokens: such a request "
            f"is accepted up to {settings.max_line_bytes:,} bytes, and fails in the engine. For "
            f"models without images, set it to {text_bytes}."
        )
        found.append(Misfit("LOWTIDE_MAX_LINE_BYTES", text))
    return found
