"""Metrics as engines report them.

vLLM and SGLang use prometheus_client, as this does; llama.cpp writes its own text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VLLM_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
                    7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
VLLM_OUTPUT_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
                     10.0, 20.0, 40.0, 80.0)  # fmt: skip
SGLANG_FIRST_TOKEN = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
SGLANG_OUTPUT_TOKEN = (0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040,
                       0.060, 0.080, 0.100, 0.200, 0.400, 0.600, 0.800, 1.0, 2.0, 4.0, 6.0,
                       8.0)  # fmt: skip


class Reported:
    """Metrics of a process; each call adds a series."""

    def __init__(self, **labels: str) -> None:
        self._registry = CollectorRegistry()
        self._labels = labels
        self._metrics: dict[str, Any] = {}

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._metric(Gauge, name, labels).set(value)

    def counter(self, name: str, value: float, **labels: str) -> None:
        self._metric(Counter, name, labels).inc(value)

    def histogram(
        self, name: str, buckets: Sequence[float], observed: Sequence[float], **labels: str
    ) -> None:
        series = self._metric(Histogram, name, labels, buckets=buckets)
        for value in observed:
            series.observe(value)

    def _metric(self, kind: Any, name: str, labels: Mapping[str, str], **options: Any) -> Any:
        labels = {**self._labels, **labels}
        if name not in self._metrics:
            self._metrics[name] = kind(
                name, f"Help of {name}.", list(labels), registry=self._registry, **options
            )
        return self._metrics[name].labels(**labels)


def vllm(
    *,
    running: float = 64,
    waiting: float = 3,
    kv_cache: float = 0.25,
    prompt_tokens: float = 8000,
    cached_tokens: float = 2000,
    first_token: Sequence[float] = (0.05, 0.3, 0.3, 12.0),
    output_token: Sequence[float] = (0.008, 0.02, 0.02, 0.3),
    engines: Sequence[str] = ("0",),
) -> bytes:
    """Return the metrics of vLLM 0.29, with the same numbers for each of its engines."""
    metrics = Reported(model_name="Qwen/Qwen2.5-7B-Instruct")
    for engine in engines:
        label = {"engine": engine}
        metrics.gauge("vllm:num_requests_running", running, **label)
        metrics.gauge("vllm:num_requests_waiting", waiting, **label)
        for reason in ("capacity", "deferred"):
            metrics.gauge("vllm:num_requests_waiting_by_reason", waiting, **label, reason=reason)
        metrics.gauge("vllm:kv_cache_usage_perc", kv_cache, **label)
        metrics.counter("vllm:prefix_cache_queries", prompt_tokens, **label)
        metrics.counter("vllm:prefix_cache_hits", cached_tokens, **label)
        metrics.counter("vllm:prompt_tokens", prompt_tokens, **label)
        metrics.counter("vllm:generation_tokens", 4000, **label)
        for name, buckets, observed in (
            ("time_to_first_token", VLLM_FIRST_TOKEN, first_token),
            ("inter_token_latency", VLLM_OUTPUT_TOKEN, output_token),
            ("request_time_per_output_token", VLLM_OUTPUT_TOKEN, output_token),
            ("e2e_request_latency", VLLM_OUTPUT_TOKEN, first_token),
        ):
            metrics.histogram(f"vllm:{name}_seconds", buckets, observed, **label)
        metrics.gauge(
            "vllm:cache_config_info", 1, **label, enable_prefix_caching="True", block_size="16"
        )
    return metrics.text()


def vllm_of_2025() -> bytes:
    """Return the metrics of vLLM 0.8, whose names have changed since."""
    metrics = Reported(model_name="m")
    metrics.gauge("vllm:num_requests_running", 2)
    metrics.gauge("vllm:num_requests_waiting", 1)
    metrics.gauge("vllm:gpu_cache_usage_perc", 0.5)
    metrics.counter("vllm:gpu_prefix_cache_queries", 100)
    metrics.counter("vllm:gpu_prefix_cache_hits", 10)
    metrics.histogram("vllm:time_to_first_token_seconds", VLLM_FIRST_TOKEN, [0.5])
    metrics.histogram("vllm:time_per_output_token_seconds", VLLM_OUTPUT_TOKEN, [0.02])
    return metrics.text()


def sglang() -> bytes:
    """Return the metrics of SGLang 0.5.23."""
    metrics = Reported(model_name="m", engine_type="unified", tp_rank="0", pp_rank="0")
    metrics.gauge("sglang:num_running_reqs", 16)
    metrics.gauge("sglang:num_queue_reqs", 1)
    metrics.gauge("sglang:token_usage", 0.83)
    metrics.gauge("sglang:cache_hit_rate", 0.4)
    for streaming in ("True", "False"):
        metrics.counter("sglang:prompt_tokens", 500, is_streaming=streaming)
        metrics.histogram(
            "sglang:time_to_first_token_seconds", SGLANG_FIRST_TOKEN, [0.3], is_streaming=streaming
        )
    for source in ("device", "host"):
        metrics.counter("sglang:cached_tokens", 100, cache_source=source)
    metrics.histogram("sglang:inter_token_latency_seconds", SGLANG_OUTPUT_TOKEN, [0.01, 0.02])
    return metrics.text()


LLAMA_CPP = b"""\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 6886
# HELP llamacpp:prompt_seconds_total Prompt process time
# TYPE llamacpp:prompt_seconds_total counter
llamacpp:prompt_seconds_total 290.363
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 3000
# HELP llamacpp:tokens_predicted_seconds_total Predict process time
# TYPE llamacpp:tokens_predicted_seconds_total counter
llamacpp:tokens_predicted_seconds_total 90.5
# HELP llamacpp:n_decode_total Total number of llama_decode() calls
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 1234
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# HELP llamacpp:requests_deferred Number of requests deferred.
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 28
"""
"""The metrics of llama.cpp's server, which has neither histograms nor, since 2025, its KV cache."""
