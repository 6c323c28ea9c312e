"""The telemetry of engines: read from their metrics, and never invented."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.engines.load import read_load
from lowtide.engines.telemetry import EngineTelemetry, Times, engine_of, read_telemetry, samples
from tests.engines.reported import LLAMA_CPP, sglang, vllm, vllm_of_2025


def read(metrics: bytes) -> EngineTelemetry:
    telemetry = read_telemetry(metrics)
    assert telemetry is not None
    return telemetry


def up_to(times: Times | None) -> dict[str, float]:
    """Return the buckets of a histogram in which the number of observations changes."""
    assert times is not None
    found, last = {}, 0.0
    for bound, number in times.buckets:
        if number != last:
            found[bound] = number - last
            last = number
    return found


def test_vllm_reports_everything() -> None:
    telemetry = read(vllm())
    assert (telemetry.running, telemetry.waiting, telemetry.kv_cache) == (64, 3, 0.25)
    assert (telemetry.prefix_queries, telemetry.prefix_hits) == (8000, 2000)
    first = telemetry.first_token
    assert first is not None
    assert first == Times(12.65, 4, first.buckets)
    assert up_to(first) == {"0.06": 1, "0.5": 2, "20.0": 1}
    assert first.buckets[-1] == ("+Inf", 4.0)
    assert up_to(telemetry.output_token) == {"0.01": 1, "0.025": 2, "0.3": 1}


def test_earlier_names_of_vllm_are_read() -> None:
    telemetry = read(vllm_of_2025())
    assert (telemetry.kv_cache, telemetry.prefix_queries, telemetry.prefix_hits) == (0.5, 100, 10)
    assert up_to(telemetry.output_token) == {"0.025": 1}


def test_ranks_are_added_up() -> None:
    telemetry = read(vllm(engines=("0", "1")))
    assert (telemetry.running, telemetry.waiting, telemetry.kv_cache) == (128, 6, 0.25)
    assert (telemetry.prefix_queries, telemetry.prefix_hits) == (16_000, 4000)
    assert up_to(telemetry.first_token) == {"0.06": 2, "0.5": 4, "20.0": 2}


def test_fullest_rank_counts() -> None:
    metrics = b'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 1\n'
    assert read(metrics) == EngineTelemetry(kv_cache=1.0)


def test_sglang_reports_everything() -> None:
    telemetry = read(sglang())
    assert (telemetry.running, telemetry.waiting, telemetry.kv_cache) == (16, 1, 0.83)
    assert (telemetry.prefix_queries, telemetry.prefix_hits) == (1000, 200)
    assert up_to(telemetry.first_token) == {"0.4": 2}
    assert up_to(telemetry.output_token) == {"0.01": 1, "0.02": 1}


def test_llama_cpp_reports_what_it_has() -> None:
    assert read(LLAMA_CPP) == EngineTelemetry(
        running=4, waiting=28, output_token=Times(seconds=90.5, count=3000)
    )


@pytest.mark.parametrize(
    ("metrics", "engine"),
    [
        (vllm(), "vLLM"),
        (sglang(), "SGLang"),
        (LLAMA_CPP, "llama.cpp"),
        (b"vllm:num_requests_running 1\n", "vLLM"),
        (b"", None),
        (b"not_vllm:num_requests_running 1\n", None),
        (b"python_info 1\n", None),
    ],
)
def test_engine_is_known_by_its_names(metrics: bytes, engine: str | None) -> None:
    assert engine_of(metrics) == engine


GOOD = read(vllm())


@pytest.mark.parametrize("value", [b"NaN", b"-1.0", b"1e+300", b"+Inf", b"-Inf", b"1e999"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (b"vllm:num_requests_running", ("running",)),
        (b"vllm:num_requests_waiting", ("waiting",)),
        (b"vllm:kv_cache_usage_perc", ("kv_cache",)),
        (b"vllm:prefix_cache_queries_total", ("prefix_queries", "prefix_hits")),
        (b"vllm:prefix_cache_hits_total", ("prefix_queries", "prefix_hits")),
        (b"vllm:time_to_first_token_seconds_sum", ("first_token",)),
        (b"vllm:inter_token_latency_seconds_count", ("output_token",)),
    ],
)
def test_impossible_number_is_unknown(name: bytes, fields: tuple[str, ...], value: bytes) -> None:
    lines = [
        b"%s %s" % (line.rpartition(b" ")[0], value) if line.startswith(name + b"{") else line
        for line in vllm().split(b"\n")
    ]
    assert read(b"\n".join(lines)) == replace(GOOD, **dict.fromkeys(fields))


@pytest.mark.parametrize("value", [b"NaN", b"-1.0", b"1e+300", b"3.0"])
def test_histogram_with_an_impossible_bucket_has_no_buckets(value: bytes) -> None:
    bucket = b'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.06"'
    lines = [
        b"%s %s" % (line.rpartition(b" ")[0], value) if line.startswith(bucket) else line
        for line in vllm(first_token=(0.05, 0.3)).split(b"\n")
    ]
    assert read(b"\n".join(lines)).first_token == Times(0.35, 2)


def test_histograms_with_different_bounds_have_no_buckets() -> None:
    metrics = b"""\
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="2.0"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf"} 1.0
vllm:time_to_first_token_seconds_sum{engine="0"} 0.5
vllm:time_to_first_token_seconds_sum{engine="1"} 0.5
vllm:time_to_first_token_seconds_count{engine="0"} 1.0
vllm:time_to_first_token_seconds_count{engine="1"} 1.0
"""
    assert read(metrics).first_token == Times(1.0, 2)


@pytest.mark.parametrize(
    "metrics",
    [
        b"",
        b"<html>vllm:num_requests_running 1</html>",
        b"# TYPE vllm:num_requests_running gauge\n",
        b"vllm:num_requests_running one\n",
        b"other_total 1\n",
        b"\xff\xfe" * 100,
        b"vllm:num_requests_running 1\n" + b"#" * (4 << 20),
    ],
    ids=["empty", "page", "no sample", "no number", "other engine", "no text", "too long"],
)
def test_other_text_has_no_telemetry(metrics: bytes) -> None:
    assert read_telemetry(metrics) is None


def test_labels_may_contain_anything() -> None:
    text = rb'x{a="}\" le=\"1\", {",le="+Inf"} 2 1790000000000' + b"\n"
    (sample,) = samples(text, (b"x",))
    assert (sample.value, sample.label(b"le"), sample.label(b"b")) == (2, "+Inf", None)


def test_load_and_telemetry_agree() -> None:
    for metrics in (vllm(), sglang(), LLAMA_CPP):
        telemetry = read(metrics)
        load = read_load(metrics)
        assert load is not None
        assert (load.running, load.waiting) == (telemetry.running, telemetry.waiting)


# The library notes when each metric was created.
TEXTS = (vllm(), sglang(), LLAMA_CPP)


@given(st.data())
def test_damaged_metrics_never_raise(data: st.DataObject) -> None:
    metrics = bytearray(data.draw(st.sampled_from(TEXTS)))
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(metrics)))
        piece = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"NaN", b"\n", b'"', b"e", b"-"])
        )
        metrics[start : start + data.draw(st.integers(0, 8))] = piece
    telemetry = read_telemetry(bytes(metrics)) or EngineTelemetry()
    assert telemetry.kv_cache is None or 0 <= telemetry.kv_cache <= 1
    for number in (telemetry.running, telemetry.waiting, telemetry.prefix_hits):
        assert number is None or 0 <= number <= 2**53
    read_load(bytes(metrics))
