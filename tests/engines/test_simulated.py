from __future__ import annotations

import asyncio
import json
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import validator_for
from msgspec.structs import replace

from lowtide.engines.model import EngineRequest
from lowtide.engines.outcomes import Answered, Interrupted, Usage
from lowtide.engines.simulated import SimulatedEngine
from lowtide.engines.simulation.requests import Request
from lowtide.files.lines import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.engines.outcomes import Outcome


def request(body: Any, endpoint: str = ENDPOINTS[0], **more: Any) -> EngineRequest:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return EngineRequest(0, endpoint, text, **({"attempt": 1, "spot": True} | more))


def run(engine: SimulatedEngine, requests: Sequence[EngineRequest]) -> dict[int, Outcome]:
    async def collect() -> dict[int, Outcome]:
        return {key: outcome async for group in engine.run(requests) for key, outcome in group}

    return asyncio.run(collect())


def many(count: int, **more: Any) -> list[EngineRequest]:
    return [replace(request({"model": "m", "user": n}, **more), key=n) for n in range(count)]


def answer_to(body: Any, endpoint: str) -> tuple[dict[str, Any], Answered]:
    outcome = run(SimulatedEngine(seed=5), [request(body, endpoint)])[0]
    assert isinstance(outcome, Answered)
    return json.loads(outcome.body), outcome


@pytest.mark.parametrize("latency", [0.0, 0.001])
def test_outcomes_do_not_depend_on_call_order(latency: float) -> None:
    rates: dict[str, Any] = {"failure_rate": 0.3, "interruption_rate": 0.3, "latency": latency}
    requests = many(60)
    forward = run(SimulatedEngine(seed=7, concurrency=3, **rates), requests)
    backward = run(SimulatedEngine(seed=7, concurrency=50, **rates), requests[::-1])
    assert forward == backward
    assert forward != run(SimulatedEngine(seed=8, **rates), requests)


@pytest.mark.parametrize(
    "changed",
    [
        {"attempt": 2},
        {"spot": False},
        {"interruptions": 1},
        {"endpoint": "/v1/completions"},
        {"body": b'{"model":"n"}'},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_outcome_depends_on_each_part_of_request(changed: dict[str, Any]) -> None:
    first = request({"model": "m"})
    engine = SimulatedEngine()
    assert run(engine, [first]) != run(engine, [replace(first, **changed)])


def test_rates_are_met_and_only_spot_is_interrupted() -> None:
    engine = SimulatedEngine(failure_rate=0.2, interruption_rate=0.1)
    spot = list(run(engine, many(4000)).values())
    dedicated = list(run(engine, many(4000, spot=False)).values())
    interrupted = [outcome for outcome in spot if isinstance(outcome, Interrupted)]
    assert {outcome.reason for outcome in interrupted} == {"Simulated spot interruption"}
    assert len(interrupted) / 4000 == pytest.approx(0.1, abs=0.03)
    assert not any(isinstance(outcome, Interrupted) for outcome in dedicated)
    failed = [o for o in dedicated if isinstance(o, Answered) and o.status_code == 500]
    assert len(failed) / 4000 == pytest.approx(0.2, abs=0.03)
    assert json.loads(failed[0].body)["error"]["type"] == "server_error"


def test_interrupted_request_eventually_succeeds() -> None:
    engine = SimulatedEngine(interruption_rate=0.5)
    attempts = [replace(request({"model": "m"}), key=n, interruptions=n) for n in range(40)]
    kinds = {type(outcome) for outcome in run(engine, attempts).values()}
    assert kinds == {Interrupted, Answered}


def test_tokens_and_latency_have_configured_mean() -> None:
    engine = SimulatedEngine(tokens=40, latency=2.0)
    samples = [engine._simulate(each) for each in many(4000)]
    tokens = [o.usage.output_tokens for o, _ in samples if isinstance(o, Answered)]
    assert fmean(tokens) == pytest.approx(40, rel=0.1)
    assert fmean(seconds for _, seconds in samples) == pytest.approx(2.0, rel=0.1)
    assert min(seconds for _, seconds in samples) >= 0.5


def test_concurrency_is_limited_to_slots() -> None:
    async def peak_timers() -> int:
        engine = SimulatedEngine(latency=0.002, concurrency=3)
        peak = 0

        async def consume() -> None:
            nonlocal peak
            async for _ in engine.run(many(15)):
                peak = max(peak, sum(len(call.timers) for call in engine._calls))

        await asyncio.gather(consume(), consume())
        assert engine._free == 3
        return peak

    assert asyncio.run(peak_timers()) == 3


def test_closing_ends_running_calls() -> None:
    async def work() -> int:
        engine = SimulatedEngine(latency=3600.0, concurrency=2)

        async def consume() -> int:
            return len([pair async for group in engine.run(many(5)) for pair in group])

        task = asyncio.create_task(consume())
        await asyncio.sleep(0)
        await engine.close()
        return await task

    assert asyncio.run(work()) == 0


PARTS = [{"role": "user", "content": [{"type": "text", "text": "tell me of"}, {"text": "seals"}]}]


@pytest.mark.parametrize(
    ("endpoint", "body", "path", "text"),
    [
        ("/v1/chat/completions", {"messages": PARTS}, "choices.0.message.content", "seals"),
        ("/v1/completions", {"prompt": "of tides"}, "choices.0.text", "of tides"),
        ("/v1/responses", {"input": "of moons"}, "output.0.content.0.text", "of moons"),
        ("/v1/responses", {"input": PARTS}, "output.0.content.0.text", "seals"),
    ],
    ids=["chat", "completion", "response", "response-items"],
)
def test_texts_echo_request(endpoint: str, body: Any, path: str, text: str) -> None:
    payload, outcome = answer_to({"model": "tiny", **body}, endpoint)
    assert payload["model"] == "tiny"
    assert payload["usage"]["total_tokens"] == (
        outcome.usage.input_tokens + outcome.usage.output_tokens
    )
    value: Any = payload
    for step in path.split("."):
        value = value[int(step)] if step.isdigit() else value[step]
    assert value.startswith("Simulated answer to:")
    assert text in value


def test_max_tokens_truncates_answer() -> None:
    payload, outcome = answer_to({"model": "m", "max_tokens": 1}, "/v1/chat/completions")
    assert payload["choices"][0]["finish_reason"] == "length"
    assert outcome.usage.output_tokens == 1


@pytest.mark.parametrize(
    ("value", "count"), [("one", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2]], 2)], ids=str
)
def test_every_input_has_embedding(value: Any, count: int) -> None:
    payload, outcome = answer_to({"model": "m", "input": value, "dimensions": 8}, "/v1/embeddings")
    assert [len(each["embedding"]) for each in payload["data"]] == [8] * count
    assert sum(x * x for x in payload["data"][0]["embedding"]) == pytest.approx(1.0)
    assert outcome.usage == Usage(input_tokens=payload["usage"]["prompt_tokens"])


def test_moderations_flag_nothing() -> None:
    payload, _ = answer_to({"model": "m", "input": ["a", "b"]}, "/v1/moderations")
    assert [result["flagged"] for result in payload["results"]] == [False, False]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["a", "b"])
SIZES = st.integers(-1, 5) | st.floats(-2, 5) | st.just(10**12)
SCHEMAS = st.recursive(
    st.booleans()
    | st.just({"$ref": "#"})
    | st.just({"$ref": "#/properties/a"})
    | st.fixed_dictionaries({}, optional={"enum": st.lists(JSON), "const": JSON}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "integer", "number", ["null"]]),
            "properties": st.dictionaries(NAMES, inner),
            "patternProperties": st.dictionaries(st.sampled_from(["^x", "(", "a$"]), inner),
            "required": st.lists(NAMES),
            "items": inner,
            "prefixItems": st.lists(inner, max_size=2),
            "contains": inner,
            "uniqueItems": st.booleans(),
            "additionalProperties": inner,
            "propertyNames": inner,
            "not": inner,
            "if": inner,
            "then": inner,
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, max_size=2),
            "pattern": st.text(st.sampled_from("ab^$.*+?(){}[]|\\d-,1"), max_size=8),
            "format": st.sampled_from(["date", "email", "unheard-of"]),
        }
        | {
            name + what: SIZES
            for name in ("min", "max")
            for what in ("imum", "Length", "Items", "Properties", "Contains")
        }
        | dict.fromkeys(("multipleOf", "exclusiveMinimum", "exclusiveMaximum"), SIZES),
    ),
    max_leaves=6,
)
FORMATS = st.fixed_dictionaries(
    {"type": st.just("json_schema")},
    optional={
        "name": st.just("n"),
        "schema": SCHEMAS | JSON,
        "json_schema": st.fixed_dictionaries({"name": st.just("n"), "schema": SCHEMAS}) | JSON,
    },
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["function", "custom", "other"])},
        optional={
            "name": st.just("f") | JSON,
            "parameters": SCHEMAS | JSON,
            "function": st.fixed_dictionaries({"name": st.just("f"), "parameters": SCHEMAS}) | JSON,
            "custom": JSON,
        },
    )
    | JSON,
    max_size=3,
)
BODIES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(Request.__struct_fields__, JSON)
    | {
        "response_format": FORMATS | JSON,
        "text": st.fixed_dictionaries({}, optional={"format": FORMATS | JSON, "verbosity": JSON}),
        "tools": TOOLS | JSON,
        "functions": TOOLS | JSON,
        "guided_json": SCHEMAS | JSON,
        "n": st.integers(-1, 3) | JSON,
        "dimensions": st.integers(-1, 3) | JSON,
        "stop": st.text() | st.lists(st.text()),
    },
)


@given(
    body=BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=40),
    endpoint=st.sampled_from([*ENDPOINTS, "/v1/other"]),
)
@settings(max_examples=100)
def test_random_body_gets_answer(body: bytes, endpoint: str) -> None:
    outcome = run(SimulatedEngine(), [request(body, endpoint)])[0]
    assert isinstance(outcome, Answered)
    assert outcome.status_code in {200, 400, 404}
    assert isinstance(json.loads(outcome.body), dict)


@given(schema=SCHEMAS)
@settings(max_examples=100)
def test_random_schema_gets_instance_or_400(schema: Any) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = {"model": "m", "response_format": response_format}
    outcome = run(SimulatedEngine(), [request(body)])[0]
    assert isinstance(outcome, Answered)
    if outcome.status_code == 200:
        content = json.loads(outcome.body)["choices"][0]["message"]["content"]
        assert validator_for(schema).is_valid(json.loads(content))
    else:
        assert outcome.status_code == 400
