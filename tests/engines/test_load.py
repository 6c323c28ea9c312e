"""An engine's load: read from its metrics, and measured by its client."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowtide.engines.load import EngineLoad, FirstTokens, Interval, LoadMeter, read_load
from lowtide.engines.outcomes import Answered, NoAnswer, Outcome, Unanswered, Usage

RECORDED = Path(__file__).with_name("metrics")
"""Answers of real engines to `GET /metrics`, while they ran requests."""
VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen2.5-7B-Instruct"} 64.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen2.5-7B-Instruct"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen2.5-7B-Instruct"} 0.25
"""
RANKS = b"""\
vllm:num_requests_running{engine="0",model_name="m"} 10.0
vllm:num_requests_running{engine="1",model_name="m"} 12.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 5.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="m"} 99.0
"""
SGLANG = b"""\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 16.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 1.2e+03
"""
LLAMA_CPP = b"""\
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 28
"""


@pytest.mark.parametrize(
    ("metrics", "load"),
    [
        pytest.param(VLLM, EngineLoad(64, 3), id="vLLM"),
        pytest.param(VLLM.replace(b"\n", b"\r\n"), EngineLoad(64, 3), id="CRLF"),
        pytest.param(RANKS, EngineLoad(22, 5), id="ranks"),
        pytest.param(SGLANG, EngineLoad(16, 1200), id="SGLang"),
        pytest.param(LLAMA_CPP, EngineLoad(4, 28), id="llama.cpp"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"vllm:num_requests_running 1\n", None, id="half"),
        pytest.param(b"<html>vllm:num_requests_running 1</html>", None, id="no metrics"),
        pytest.param(
            b"vllm:num_requests_running 1e+e\nvllm:num_requests_waiting 1\n", None, id="no number"
        ),
        pytest.param(
            b"vllm:num_requests_running 1e999\nvllm:num_requests_waiting 1\n", None, id="too large"
        ),
        pytest.param(b"\xff\xfe" * 100, None, id="no text"),
    ],
)
def test_load_is_read_from_metrics(metrics: bytes, load: EngineLoad | None) -> None:
    assert read_load(metrics) == load


def test_load_is_read_from_metrics_of_a_real_engine() -> None:
    load = EngineLoad(124, 0, FirstTokens(1141, 107.22450256347656))
    assert read_load((RECORDED / "vllm-0.25.1.txt").read_bytes()) == load


def test_first_tokens_of_ranks_are_added_up() -> None:
    metrics = SGLANG + b"".join(
        b'sglang:time_to_first_token_seconds_%s{model_name="m",tp_rank="%d"} %s\n' % one
        for one in [
            (b"sum", 0, b"5e-01"),
            (b"sum", 1, b"1.5"),
            (b"count", 0, b"7"),
            (b"count", 1, b"3"),
        ]
    )
    load = read_load(metrics)
    assert load is not None
    assert load.first_tokens == FirstTokens(10.0, 2.0)


def answered(tokens: int, status: int = 200) -> Outcome:
    return Answered(status, b"{}", usage=Usage(5, tokens))


def test_meter_measures_requests_in_flight_and_work() -> None:
    now = 0.0
    meter = LoadMeter(lambda: now)
    first = meter.begin()
    now = 1.0
    second, third, fourth = meter.begin(), meter.begin(), meter.begin()
    now = 2.0
    meter.end(first, answered(30))
    meter.end(second, answered(0))
    now = 4.0
    meter.end(third, None)
    # 1 request for a second, 4 for a second, 2 for two seconds.
    assert meter.take() == Interval(4.0, 9 / 4, 1, answers=2, work=31.0, latency=3.0)
    now = 5.0
    meter.end(fourth, answered(8))
    assert meter.take() == Interval(1.0, 1.0, 0, answers=1, work=8.0, latency=4.0)


@pytest.mark.parametrize(
    "outcome", [answered(9, 429), answered(9, 500), Unanswered(NoAnswer.TIMEOUT, "late"), None]
)
def test_meter_counts_no_work_without_success(outcome: Outcome | None) -> None:
    meter = LoadMeter(lambda: 0.0)
    meter.end(meter.begin(), outcome)
    assert meter.take() == Interval(0.0, 0.0, 0)
