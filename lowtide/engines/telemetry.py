"""The metrics that engines report of themselves, under one set of names.

The names are those of vLLM 0.8 to 0.29 (`vllm/v1/metrics/loggers.py`), SGLang 0.5
(`srt/observability/metrics_collector.py`, with `--enable-metrics`) and llama.cpp's server
(`tools/server/server-context.cpp`, with `--metrics`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a Prometheus text; `labels` is their text, with braces."""

    name: bytes
    labels: bytes
    value: float

    def label(self, name: bytes) -> str | None:
        """Return the value of a label; None if the sample does not have it."""
        for match in _LABEL.finditer(self.labels):
            if match[1] == name:
                return match[2].decode(errors="replace")
        return None


_LABEL: Final = re.compile(rb'[{,]\s*(\w+)="((?:[^"\\]|\\.)*)"')


def samples(metrics: bytes, names: tuple[bytes, ...]) -> Iterator[Sample]:
    """Yield the samples of these names in a Prometheus text, in its order."""
    for name, labels, value in _pattern(names).findall(metrics):
        yield Sample(name, labels, float(value))


@cache
def _pattern(names: tuple[bytes, ...]) -> re.Pattern[bytes]:
    # An alternative per name is several times as fast as any name and a look-up of each. A timestamp
    # may follow the value.
    return re.compile(
        rb"^(%s)(\{[^\n]*\})? ([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?Inf|NaN)"
        rb"(?: -?[0-9]+)?\r?$" % b"|".join(map(re.escape, names)),
        re.MULTILINE,
    )


@dataclass(frozen=True, slots=True)
class Names:
    """The names of an engine's metrics; of several the first that it reports counts.

    A time is a histogram, or its sum and its number of observations.
    """

    prefix: bytes
    running: bytes
    waiting: bytes
    kv_cache: tuple[bytes, ...] = ()
    prefix_queries: tuple[bytes, ...] = ()
    prefix_hits: tuple[bytes, ...] = ()
    first_token: tuple[tuple[bytes, bytes], ...] = ()
    output_token: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def all(self) -> tuple[bytes, ...]:
        """Every name of a sample."""
        times = [name for pair in (*self.first_token, *self.output_token) for name in pair]
        buckets = [_buckets(name) for name in times if name.endswith(_SUM)]
        single = (self.running, self.waiting, *self.kv_cache)
        return (*single, *self.prefix_queries, *self.prefix_hits, *times, *buckets)


_SUM: Final = b"_sum"


def _histogram(name: bytes) -> tuple[bytes, bytes]:
    return name + _SUM, name + b"_count"


def _buckets(sum_name: bytes) -> bytes:
    return sum_name.removesuffix(_SUM) + b"_bucket"


ENGINES: Final = {
    "vLLM": Names(
        prefix=b"vllm:",
        running=b"vllm:num_requests_running",
        waiting=b"vllm:num_requests_waiting",
        # vLLM renamed these in 0.10, and the time per output token in 0.11.
        kv_cache=(b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
        prefix_queries=(
            b"vllm:prefix_cache_queries_total",
            b"vllm:gpu_prefix_cache_queries_total",
        ),
        prefix_hits=(b"vllm:prefix_cache_hits_total", b"vllm:gpu_prefix_cache_hits_total"),
        first_token=(_histogram(b"vllm:time_to_first_token_seconds"),),
        output_token=(
            _histogram(b"vllm:inter_token_latency_seconds"),
            _histogram(b"vllm:time_per_output_token_seconds"),
        ),
    ),
    "SGLang": Names(
        prefix=b"sglang:",
        running=b"sglang:num_running_reqs",
        waiting=b"sglang:num_queue_reqs",
        kv_cache=(b"sglang:token_usage",),
        # Tokens of prompts, and those of them that were cached, as vLLM counts.
        prefix_queries=(b"sglang:prompt_tokens_total",),
        prefix_hits=(b"sglang:cached_tokens_total",),
        first_token=(_histogram(b"sglang:time_to_first_token_seconds"),),
        output_token=(
            _histogram(b"sglang:inter_token_latency_seconds"),
            _histogram(b"sglang:time_per_output_token_seconds"),
        ),
    ),
    "llama.cpp": Names(
        prefix=b"llamacpp:",
        running=b"llamacpp:requests_processing",
        waiting=b"llamacpp:requests_deferred",
        kv_cache=(b"llamacpp:kv_cache_usage_ratio",),
        output_token=(
            (b"llamacpp:tokens_predicted_seconds_total", b"llamacpp:tokens_predicted_total"),
        ),
    ),
}
"""Engines whose metrics are known, by name."""
MAX_TEXT: Final = 4 << 20
"""Max bytes of a text that is read: engines report tens of kilobytes."""
_MAX_COUNT: Final = float(1 << 53)
_MAX_REQUESTS: Final = 10**9
_MAX_BUCKETS: Final = 100


def engine_of(metrics: bytes) -> str | None:
    """Return the name of the engine that reports these metrics; None if it is not known."""
    for name, names in ENGINES.items():
        if metrics.startswith(names.prefix) or b"\n" + names.prefix in metrics:
            return name
    return None


@dataclass(frozen=True, slots=True)
class Times:
    """Times that an engine observed since its start: their sum in seconds, and their number.

    `buckets` has the number of those up to each bound, by the bound as text, up to `+Inf`; it is empty
    if the engine reports none.
    """

    seconds: float
    count: int
    buckets: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineTelemetry:
    """The metrics of an engine, of all its clients; None for each that it does not report.

    `running` and `waiting` are requests, `kv_cache` is the used share of the KV cache, from 0 to 1.
    `prefix_queries` are tokens of prompts since its start, `prefix_hits` those found in the prefix
    cache. `first_token` has the times to the first token, `output_token` those per output token.
    """

    running: int | None = None
    waiting: int | None = None
    kv_cache: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    first_token: Times | None = None
    output_token: Times | None = None


_NOTHING: Final = EngineTelemetry()
_Name = TypeVar("_Name")
_Value = TypeVar("_Value")


def read_telemetry(metrics: bytes) -> EngineTelemetry | None:
    """Return the telemetry in the metrics of an engine; None if there is none.

    An engine may have a series for each of its models or ranks: they are added up, and the fullest
    KV cache counts. A number that cannot be is not reported.
    """
    if len(metrics) > MAX_TEXT or (engine := engine_of(metrics)) is None:
        return None
    names = ENGINES[engine]
    found: dict[bytes, list[Sample]] = {}
    for sample in samples(metrics, names.all):
        found.setdefault(sample.name, []).append(sample)
    queries = _first(names.prefix_queries, lambda name: _total(found, name))
    hits = _first(names.prefix_hits, lambda name: _total(found, name))
    is_counted = queries is not None and hits is not None
    telemetry = EngineTelemetry(
        running=_requests(found, names.running),
        waiting=_requests(found, names.waiting),
        kv_cache=_first(names.kv_cache, lambda name: _share(found, name)),
        prefix_queries=queries if is_counted else None,
        prefix_hits=hits if is_counted else None,
        first_token=_first(names.first_token, lambda pair: _times(found, *pair)),
        output_token=_first(names.output_token, lambda pair: _times(found, *pair)),
    )
    return None if telemetry == _NOTHING else telemetry


def _first(names: tuple[_Name, ...], read: Callable[[_Name], _Value | None]) -> _Value | None:
    return next((value for name in names if (value := read(name)) is not None), None)


def _total(found: dict[bytes, list[Sample]], name: bytes) -> float | None:
    """Return the sum of the series of a name; None without any, or for an impossible sum."""
    if name not in found:
        return None
    values = [sample.value for sample in found[name]]
    total = sum(values)
    # Also false for NaN.
    return total if min(values) >= 0 and total <= _MAX_COUNT else None


def _requests(found: dict[bytes, list[Sample]], name: bytes) -> int | None:
    total = _total(found, name)
    return round(total) if total is not None and total <= _MAX_REQUESTS else None


def _share(found: dict[bytes, list[Sample]], name: bytes) -> float | None:
    values = [sample.value for sample in found.get(name, ())]
    return max(values) if values and all(0 <= value <= 1 for value in values) else None


def _times(found: dict[bytes, list[Sample]], sum_name: bytes, count_name: bytes) -> Times | None:
    seconds, count = _total(found, sum_name), _total(found, count_name)
    if seconds is None or count is None:
        return None
    return Times(seconds, round(count), _added_up(found.get(_buckets(sum_name), ()), count))


def _added_up(buckets: list[Sample] | tuple[()], count: float) -> tuple[tuple[str, float], ...]:
    """Return the sum of histograms with the same bounds; empty if that is no histogram."""
    totals: dict[str, list[float]] = {}
    for bucket in buckets:
        totals.setdefault(bucket.label(b"le") or "", []).append(bucket.value)
    if len({len(values) for values in totals.values()}) != 1 or len(totals) > _MAX_BUCKETS:
        return ()
    try:
        bounds = sorted(totals, key=float)
    except ValueError:
        return ()
    numbers = [sum(totals[bound]) for bound in bounds]
    is_rising = all(low <= high for low, high in zip([0.0, *numbers], numbers, strict=False))
    if not is_rising or numbers[-1] != count or not math.isinf(float(bounds[-1])):
        return ()
    return tuple(zip(bounds, numbers, strict=True))
