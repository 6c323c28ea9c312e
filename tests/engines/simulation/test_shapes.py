"""Simulated answers follow the official client's types strictly, and the request's options."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from struct import unpack
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from openai.types import Completion, CreateEmbeddingResponse, ModerationCreateResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.engines.simulation.asking import CHAT, RESPONSES, answer, ask, refusal

if TYPE_CHECKING:
    from pydantic import BaseModel

CASES = Path(__file__).resolve().parents[4] / "shared" / "data" / "cases"
TYPES: dict[str, type[BaseModel]] = {
    CHAT: ChatCompletion,
    RESPONSES: Response,
    "/v1/completions": Completion,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/moderations": ModerationCreateResponse,
}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "tags": {"type": "array", "items": {"enum": ["a"]}}},
    "required": ["n", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "name": "U", "strict": True, "schema": SCHEMA}
CHAT_FORMAT = {"type": "json_schema", "json_schema": {"name": "U", "schema": SCHEMA}}
TOOL = {"name": "weigh", "description": "Weigh it", "parameters": SCHEMA, "strict": True}
CHAT_TOOLS = [
    {"type": "function", "function": TOOL},
    {"type": "function", "function": {"name": "ping"}},
]
RESPONSE_TOOLS = [{"type": "function", **TOOL}, {"type": "web_search"}]
USER = [{"role": "user", "content": "hi there"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": USER}),
    "chat-cut": (CHAT, {"messages": USER, "max_completion_tokens": 2}),
    "chat-many": (CHAT, {"messages": USER, "n": 3}),
    "chat-logprobs": (CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 3}),
    "chat-schema": (CHAT, {"messages": USER, "response_format": CHAT_FORMAT, "logprobs": True}),
    "chat-object": (CHAT, {"messages": USER, "response_format": {"type": "json_object"}}),
    "chat-tools": (CHAT, {"messages": USER, "tools": CHAT_TOOLS, "tool_choice": "required"}),
    "chat-custom": (CHAT, {"tools": [{"type": "custom", "custom": {"name": "shell"}}]}),
    "chat-functions": (CHAT, {"messages": USER, "functions": [TOOL]}),
    "response": (RESPONSES, {"input": "hi"}),
    "response-cut": (RESPONSES, {"input": "hi", "max_output_tokens": 2}),
    "response-turns": (RESPONSES, {"input": USER, "instructions": "Be brief.", "user": "u"}),
    "response-logprobs": (
        RESPONSES,
        {"input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ),
    "response-schema": (RESPONSES, {"input": "hi", "text": {"format": FORMAT}}),
    "response-object": (RESPONSES, {"input": "hi", "text": {"format": {"type": "json_object"}}}),
    "response-tools": (RESPONSES, {"input": "hi", "tools": RESPONSE_TOOLS}),
    "response-custom": (RESPONSES, {"input": "hi", "tools": [{"type": "custom", "name": "c"}]}),
    "response-named": (
        RESPONSES,
        {
            "input": "hi",
            "tools": RESPONSE_TOOLS,
            "tool_choice": {"type": "function", "name": "weigh"},
            "parallel_tool_calls": False,
            "previous_response_id": "resp_1",
            "metadata": {"k": "v"},
            "temperature": 0,
            "top_p": 0.5,
            "reasoning": {"effort": "low"},
            "truncation": "auto",
        },
    ),
    "completion": ("/v1/completions", {"prompt": "hi"}),
    "completion-many": (
        "/v1/completions",
        {"prompt": ["a", "b"], "n": 2, "logprobs": 2, "echo": True},
    ),
    "embedding": ("/v1/embeddings", {"input": ["a", "b"]}),
    "moderation": ("/v1/moderations", {"input": "hi"}),
    "moderation-parts": (
        "/v1/moderations",
        {"input": [{"type": "text", "text": "hi"}, IMAGE]},
    ),
}


@pytest.mark.parametrize(("endpoint", "body"), BODIES.values(), ids=BODIES)
def test_answer_validates_against_official_type(endpoint: str, body: dict[str, Any]) -> None:
    outcome = ask(endpoint, **body)
    assert outcome.status_code == 200, outcome.body
    TYPES[endpoint].model_validate_json(outcome.body, strict=True)
    TYPES[endpoint].model_validate(json.loads(outcome.body), strict=True)


def _case(name: str) -> dict[str, Any]:
    path = CASES / name
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    line: dict[str, Any] = json.loads(path.read_bytes())
    return line


def test_recorded_response_case_validates() -> None:
    case = _case("responses-schema-simulated.jsonl")
    Response.model_validate(answer(case["url"], **case["body"]))


def test_recorded_structured_output_case_validates() -> None:
    case = _case("structured-output-simulated.jsonl")
    result = ChatCompletion.model_validate(answer(case["url"], **case["body"]))
    schema = case["body"]["response_format"]["json_schema"]["schema"]
    jsonschema.validate(json.loads(result.choices[0].message.content or ""), schema)


def test_every_choice_follows_schema() -> None:
    result = answer(CHAT, messages=USER, n=4, response_format=CHAT_FORMAT)
    texts = [choice["message"]["content"] for choice in result["choices"]]
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert {choice["finish_reason"] for choice in result["choices"]} == {"stop"}


def test_response_follows_schema() -> None:
    result = answer(RESPONSES, input="hi", text={"format": FORMAT, "verbosity": "low"})
    jsonschema.validate(json.loads(result["output"][0]["content"][0]["text"]), SCHEMA)
    assert result["text"]["format"]["schema"] == SCHEMA
    assert result["text"]["verbosity"] == "low"


@pytest.mark.parametrize(
    "body",
    [
        {"guided_json": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
    ids=["guided", "structured", "text"],
)
def test_vllm_schema_options_are_followed(body: dict[str, Any]) -> None:
    result = answer(CHAT, messages=USER, **body)
    jsonschema.validate(json.loads(result["choices"][0]["message"]["content"]), SCHEMA)


def test_token_limit_truncates_json() -> None:
    chat = answer(CHAT, messages=USER, max_tokens=2, response_format=CHAT_FORMAT)["choices"][0]
    assert chat["finish_reason"] == "length"
    assert len(chat["message"]["content"]) == 8
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(chat["message"]["content"])
    result = answer(RESPONSES, input="hi", max_output_tokens=2, text={"format": FORMAT})
    assert result["status"] == result["output"][0]["status"] == "incomplete"
    assert result["incomplete_details"] == {"reason": "max_output_tokens"}


BAD_SCHEMA = {"type": "objec"}
INVALID: dict[str, tuple[str, dict[str, Any], str | None, str | None]] = {
    "schema": (
        CHAT,
        {"response_format": CHAT_FORMAT | {"json_schema": {"name": "U", "schema": BAD_SCHEMA}}},
        "response_format",
        None,
    ),
    "nameless": (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
        "missing_required_parameter",
    ),
    "no-schema": (
        CHAT,
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    "unknown": (CHAT, {"response_format": {"type": "yaml"}}, "response_format", None),
    "response-schema": (
        RESPONSES,
        {"text": {"format": FORMAT | {"schema": BAD_SCHEMA}}},
        "text.format.schema",
        "invalid_json_schema",
    ),
    "response-unknown": (RESPONSES, {"text": {"format": {"type": "yaml"}}}, "text.format", None),
    "parameters": (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": BAD_SCHEMA}}]},
        "tools[0].parameters",
        "invalid_function_parameters",
    ),
    "tool-nameless": (
        CHAT,
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    "tool-type": (CHAT, {"tools": [{"type": "x"}]}, "tools[0].type", None),
    "choice": (
        CHAT,
        {"tools": CHAT_TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}},
        "tool_choice",
        None,
    ),
    "n": (CHAT, {"n": 0}, "n", None),
    "top": (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
    "logprobs": ("/v1/completions", {"prompt": "a", "logprobs": 6}, "logprobs", None),
    "dimensions": ("/v1/embeddings", {"input": "a", "dimensions": 10**6}, "dimensions", None),
}


@pytest.mark.parametrize(("endpoint", "body", "param", "code"), INVALID.values(), ids=INVALID)
def test_error_names_invalid_parameter(
    endpoint: str, body: dict[str, Any], param: str | None, code: str | None
) -> None:
    error = refusal(endpoint, **body)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def _calls(**body: Any) -> list[dict[str, Any]]:
    [choice] = answer(CHAT, **({"messages": USER, "tools": CHAT_TOOLS} | body))["choices"]
    calls: list[dict[str, Any]] = choice["message"].get("tool_calls", [])
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert (choice["message"]["content"] is None) == bool(calls)
    for call in calls:
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(
            arguments, SCHEMA if call["function"]["name"] == "weigh" else {"type": "object"}
        )
    return calls


def test_tools_are_called_with_valid_arguments() -> None:
    turns = [[{"role": "user", "content": f"{n}"}] for n in range(20)]
    result = [_calls(messages=turn) for turn in turns]
    assert {len(calls) for calls in result} == {1, 2}
    assert {call["function"]["name"] for calls in result for call in calls} == {"weigh", "ping"}
    ids = [call["id"] for calls in result for call in calls]
    assert len(set(ids)) == len(ids)
    assert {len(_calls(messages=turn, parallel_tool_calls=False)) for turn in turns} == {1}


def test_tool_choice_is_obeyed() -> None:
    assert _calls(tool_choice="none") == []
    named = {"type": "function", "function": {"name": "ping"}}
    assert [call["function"]["name"] for call in _calls(tool_choice=named)] == ["ping"]
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [{"type": "function", "function": {"name": "ping"}}],
        },
    }
    assert {call["function"]["name"] for call in _calls(tool_choice=allowed)} == {"ping"}


def test_tool_result_is_answered_with_message() -> None:
    turns = [*USER, {"role": "tool", "tool_call_id": "c", "content": "4"}]
    assert _calls(messages=turns) == []
    assert _calls(messages=turns, tool_choice="required")
    items = [*USER, {"type": "function_call_output", "call_id": "c", "output": "4"}]
    result = answer(RESPONSES, input=items, tools=RESPONSE_TOOLS)
    assert [item["type"] for item in result["output"]] == ["message"]


def test_response_calls_functions() -> None:
    result = answer(RESPONSES, input="hi", tools=RESPONSE_TOOLS, parallel_tool_calls=False)
    [item] = result["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "weigh", "completed")
    jsonschema.validate(json.loads(item["arguments"]), SCHEMA)
    assert result["parallel_tool_calls"] is False
    assert [tool["type"] for tool in result["tools"]] == ["function", "web_search"]


def test_legacy_functions_are_called() -> None:
    [choice] = answer(CHAT, messages=USER, functions=[TOOL])["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "weigh"
    [choice] = answer(CHAT, messages=USER, functions=[TOOL], function_call="none")["choices"]
    assert choice["finish_reason"] == "stop"


def test_response_echoes_request_options() -> None:
    _, body = BODIES["response-named"]
    result = answer(RESPONSES, **body)
    echoed = (
        "previous_response_id",
        "metadata",
        "temperature",
        "top_p",
        "truncation",
        "tool_choice",
    )
    assert {name: result[name] for name in echoed} == {name: body[name] for name in echoed}
    assert result["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert answer(RESPONSES, input="hi", instructions="Brief.")["instructions"] == "Brief."


def test_usage_counts_words_of_all_choices() -> None:
    result = answer(CHAT, messages=USER, n=3)
    texts = [choice["message"]["content"] for choice in result["choices"]]
    assert [choice["index"] for choice in result["choices"]] == [0, 1, 2]
    words = sum(len(text.split()) for text in texts)
    assert result["usage"]["completion_tokens"] == words


def test_logprobs_match_text() -> None:
    [choice] = answer(CHAT, messages=USER, logprobs=True, top_logprobs=4)["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == choice["message"]["content"]
    for each in content:
        assert bytes(each["bytes"]).decode() == each["token"]
        tops = [top["logprob"] for top in each["top_logprobs"]]
        assert len(tops) == 4
        assert sorted(tops, reverse=True) == tops
        assert sum(map(math.exp, tops)) <= 1.0
        assert len({top["token"] for top in each["top_logprobs"]}) == 4


def test_completions_answer_each_prompt() -> None:
    result = answer("/v1/completions", prompt=["of moons", "of tides"], n=2)
    texts = [choice["text"] for choice in result["choices"]]
    assert [choice["index"] for choice in result["choices"]] == [0, 1, 2, 3]
    assert ["of moons" in text for text in texts] == [True, True, False, False]
    tokens = answer("/v1/completions", prompt=[[1, 2], [3]])
    assert len(tokens["choices"]) == 2


def test_echo_precedes_text_and_has_logprobs() -> None:
    [choice] = answer("/v1/completions", prompt="of tides", echo=True, logprobs=1)["choices"]
    assert choice["text"].startswith("of tides Simulated")
    scored = choice["logprobs"]
    assert "".join(scored["tokens"]) == choice["text"]
    for token, at in zip(scored["tokens"], scored["text_offset"], strict=True):
        assert choice["text"][at:].startswith(token)
    [choice] = answer("/v1/completions", prompt="of tides", echo=True, max_tokens=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("of tides", "length")


@pytest.mark.parametrize("stop", ["answer", ["no such", "answer"]], ids=["text", "list"])
def test_stop_sequence_ends_text(stop: Any) -> None:
    result = answer(CHAT, messages=USER, stop=stop, max_tokens=4)
    assert result["choices"][0]["message"]["content"] == "Simulated "
    assert result["choices"][0]["finish_reason"] == "stop"
    assert result["usage"]["completion_tokens"] == 1


def test_seed_gives_same_answer_for_every_attempt() -> None:
    def bodies(**body: Any) -> set[bytes]:
        return {ask(CHAT, messages=USER, attempt=n, **body).body for n in range(1, 6)}

    assert len(bodies(seed=3)) == 1
    assert len(bodies()) > 1


@pytest.mark.parametrize("size", [1, 1024, 16_384])
def test_vectors_have_requested_dimension(size: int) -> None:
    body = {"input": ["a", [1, 2]], "dimensions": size}
    plain = answer("/v1/embeddings", **body)["data"]
    encoded = answer("/v1/embeddings", encoding_format="base64", **body)["data"]
    for one, other in zip(plain, encoded, strict=True):
        assert math.hypot(*one["embedding"]) == pytest.approx(1.0)
        values = unpack(f"<{size}f", base64.b64decode(other["embedding"]))
        assert values == pytest.approx(one["embedding"], rel=1e-6)


def test_moderations_report_input_types() -> None:
    [text] = answer("/v1/moderations", input="a")["results"]
    assert text["category_applied_input_types"]["violence"] == ["text"]
    result = answer("/v1/moderations", input=[{"type": "text", "text": "hi"}, IMAGE], model="")
    [both] = result["results"]
    assert result["model"] == "omni-moderation-latest"
    assert both["category_applied_input_types"]["violence"] == ["text", "image"]
    assert both["category_applied_input_types"]["hate"] == ["text"]
    assert set(both["categories"]) == set(both["category_scores"])
    assert len(both["categories"]) == 13
