"""What engines report of themselves, and the GPUs of their pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, row

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.builders.timeseries import Panel

_HERE = 'namespace=~"$namespace",fleet=~"$fleet",pool=~"$pool"'
_BY = "fleet, pool"
_NAME = "{{fleet}} {{pool}}"


def build() -> Dashboard:
    """Return engines and GPUs by fleet and pool."""
    made = board(
        "lowtide-engines",
        "Lowtide / Engines",
        "Tokens, load, caches and latencies of engines as they report them, and their GPUs. An engine "
        "counts once for each of its workers: one is enough.",
        variables=("namespace", "fleet", "pool"),
        since="now-6h",
    ).with_row(row("Engines"))
    for panel in (*_engines(), *_latencies()):
        made = made.with_panel(panel)
    made = made.with_row(row("GPUs"))
    for panel in _gpus():
        made = made.with_panel(panel)
    return made


def _engines() -> tuple[Panel, ...]:
    return (
        graph(
            "Tokens per second",
            Query(_rate("engine_prompt_tokens_total"), f"{_NAME} prompt"),
            Query(_rate("engine_output_tokens_total"), f"{_NAME} output"),
            description="Tokens of Lowtide's answers, by their usage. Long answers arrive in bursts.",
        ),
        graph(
            "Requests in engines",
            Query(f"sum by ({_BY}) (engine_requests_running{{{_HERE}}})", f"{_NAME} running"),
            Query(f"sum by ({_BY}) (engine_requests_waiting{{{_HERE}}})", f"{_NAME} waiting"),
            description="Those of all clients of the engines.",
        ),
        graph(
            "KV cache",
            Query(f"max by (pod, {_BY}) (engine_kv_cache_usage_ratio{{{_HERE}}})", "{{pod}}"),
            unit="percentunit",
            alarm_from=0.95,
            description="A full KV cache bounds the requests that run at once.",
        ),
        graph(
            "Prefix cache hits",
            Query(
                f"{_rate('engine_prefix_cache_hits_total')}"
                f" / {_rate('engine_prefix_cache_queries_total')}",
                _NAME,
            ),
            unit="percentunit",
            description="Share of prompt tokens whose computation was shared.",
        ),
        graph(
            "Concurrency of workers",
            Query(f"max by (pod, {_BY}) (worker_concurrency{{{_HERE}}})", "{{pod}}"),
            description="Max requests in flight, as LOWTIDE_WORKER_CONCURRENCY=auto has found it.",
        ),
    )


def _latencies() -> tuple[Panel, ...]:
    return (
        _latency("Time to first token", "engine_time_to_first_token_seconds"),
        _latency("Time per output token", "engine_time_per_output_token_seconds"),
    )


def _latency(title: str, metric: str) -> Panel:
    quantiles = (
        Query(
            f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', f'le, {_BY}')})",
            f"{_NAME} p{quantile * 100:.0f}",
        )
        for quantile in (0.5, 0.95, 0.99)
    )
    mean = Query(f"{_rate(f'{metric}_sum')} / {_rate(f'{metric}_count')}", f"{_NAME} mean")
    return graph(
        title,
        *quantiles,
        mean,
        unit="s",
        description="Of all clients of the engines. llama.cpp reports means alone.",
    )


def _rate(metric: str, by: str = _BY) -> str:
    return f"sum by ({by}) (rate({metric}{{{_HERE}}}[$__rate_interval]))"


def _gpus() -> tuple[Panel, ...]:
    memory = _of_workers("DCGM_FI_DEV_FB_USED")
    free = _of_workers("DCGM_FI_DEV_FB_FREE")
    power = _of_workers("DCGM_FI_DEV_POWER_USAGE")
    return (
        graph(
            "GPU utilization",
            Query(_of_workers("DCGM_FI_DEV_GPU_UTIL"), "{{pod}} GPU {{gpu}}"),
            unit="percent",
            description="Share of time in which the GPU ran anything: it may be full at half its speed.",
        ),
        graph(
            "GPU memory",
            Query(f"{memory} / ({memory} + {free})", "{{pod}} GPU {{gpu}}"),
            unit="percentunit",
            description="Engines reserve memory for their KV cache at their start.",
        ),
        graph("GPU power", Query(power, "{{pod}} GPU {{gpu}}"), unit="watt"),
        graph(
            "Energy per output token",
            Query(f"sum by ({_BY}) ({power}) / ({_rate('engine_output_tokens_total')} > 0)", _NAME),
            unit="joule",
            description="Power of the GPUs of workers, divided by Lowtide's output tokens per second.",
        ),
    )


def _of_workers(metric: str) -> str:
    """Return a metric of NVIDIA's DCGM exporter, for the GPUs of our workers' pods.

    The exporter names the pod that has the GPU; Prometheus renames its labels to `exported_…` if the
    exporter's own pod has them, too.
    """
    named = metric
    for label in ("namespace", "pod"):
        named = f'label_replace({named}, "{label}", "$1", "exported_{label}", "(.+)")'
    return (
        f"max by (namespace, pod, gpu) ({named})"
        f" * on (namespace, pod) group_left ({_BY})"
        f" group by (namespace, pod, {_BY}) (worker_concurrency{{{_HERE}}})"
    )
