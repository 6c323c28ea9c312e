"""Answers are what the official client's types describe, strictly, and say what was asked for."""

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
def test_the_official_types_take_the_answer(endpoint: str, body: dict[str, Any]) -> None:
    outcome = ask(endpoint, **body)
    assert outcome.status_code == 200, outcome.body
    TYPES[endpoint].model_validate_json(outcome.body, strict=True)
    TYPES[endpoint].model_validate(json.loads(outcome.body), strict=True)


def _case(name: str) -> dict[str, Any]:
    path = CASES / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    line: dict[str, Any] = json.loads(path.read_bytes())
    return line


def test_the_case_of_a_response() -> None:
    case = _case("responses-schema-simulated.jsonl")
    Response.model_validate(answer(case["url"], **case["body"]))


def test_the_case_of_structured_output() -> None:
    case = _case("structured-output-simulated.jsonl")
    made = ChatCompletion.model_validate(answer(case["url"], **case["body"]))
    schema = case["body"]["response_format"]["json_schema"]["schema"]
    jsonschema.validate(json.loads(made.choices[0].message.content or ""), schema)


def test_a_schema_holds_in_every_choice() -> None:
    made = answer(CHAT, messages=USER, n=4, response_format=CHAT_FORMAT)
    texts = [choice["message"]["content"] for choice in made["choices"]]
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert {choice["finish_reason"] for choice in made["choices"]} == {"stop"}


def test_a_schema_holds_in_a_response() -> None:
    made = answer(RESPONSES, input="hi", text={"format": FORMAT, "verbosity": "low"})
    jsonschema.validate(json.loads(made["output"][0]["content"][0]["text"]), SCHEMA)
    assert made["text"]["format"]["schema"] == SCHEMA
    assert made["text"]["verbosity"] == "low"


@pytest.mark.parametrize(
    "body",
    [
        {"guided_json": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
    ids=["guided", "structured", "text"],
)
def test_the_options_of_vllm_hold(body: dict[str, Any]) -> None:
    made = answer(CHAT, messages=USER, **body)
    jsonschema.validate(json.loads(made["choices"][0]["message"]["content"]), SCHEMA)


def test_a_limit_cuts_json() -> None:
    chat = answer(CHAT, messages=USER, max_tokens=2, response_format=CHAT_FORMAT)["choices"][0]
    assert chat["finish_reason"] == "length"
    assert len(chat["message"]["content"]) == 8
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(chat["message"]["content"])
    made = answer(RESPONSES, input="hi", max_output_tokens=2, text={"format": FORMAT})
    assert made["status"] == made["output"][0]["status"] == "incomplete"
    assert made["incomplete_details"] == {"reason": "max_output_tokens"}


BAD_SCHEMA = {"type": "objec"}
REFUSED: dict[str, tuple[str, dict[str, Any], str | None, str | None]] = {
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


@pytest.mark.parametrize(("endpoint", "body", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named(
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
    made = [_calls(messages=turn) for turn in turns]
    assert {len(calls) for calls in made} == {1, 2}
    assert {call["function"]["name"] for calls in made for call in calls} == {"weigh", "ping"}
    ids = [call["id"] for calls in made for call in calls]
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


def test_a_tool_result_is_answered_in_words() -> None:
    turns = [*USER, {"role": "tool", "tool_call_id": "c", "content": "4"}]
    assert _calls(messages=turns) == []
    assert _calls(messages=turns, tool_choice="required")
    items = [*USER, {"type": "function_call_output", "call_id": "c", "output": "4"}]
    made = answer(RESPONSES, input=items, tools=RESPONSE_TOOLS)
    assert [item["type"] for item in made["output"]] == ["message"]


def test_a_response_calls_functions() -> None:
    made = answer(RESPONSES, input="hi", tools=RESPONSE_TOOLS, parallel_tool_calls=False)
    [item] = made["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "weigh", "completed")
    jsonschema.validate(json.loads(item["arguments"]), SCHEMA)
    assert made["parallel_tool_calls"] is False
    assert [tool["type"] for tool in made["tools"]] == ["function", "web_search"]


def test_legacy_functions_are_called() -> None:
    [choice] = answer(CHAT, messages=USER, functions=[TOOL])["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "weigh"
    [choice] = answer(CHAT, messages=USER, functions=[TOOL], function_call="none")["choices"]
    assert choice["finish_reason"] == "stop"


def test_a_response_repeats_what_it_was_asked() -> None:
    _, body = BODIES["response-named"]
    made = answer(RESPONSES, **body)
    same = ("previous_response_id", "metadata", "temperature", "top_p", "truncation", "tool_choice")
    assert {name: made[name] for name in same} == {name: body[name] for name in same}
    assert made["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert answer(RESPONSES, input="hi", instructions="Brief.")["instructions"] == "Brief."


def test_choices_differ_and_are_all_counted() -> None:
    made = answer(CHAT, messages=USER, n=3)
    texts = [choice["message"]["content"] for choice in made["choices"]]
    assert [choice["index"] for choice in made["choices"]] == [0, 1, 2]
    words = sum(len(text.split()) for text in texts)
    assert made["usage"]["completion_tokens"] == words


def test_logprobs_spell_the_text() -> None:
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
    made = answer("/v1/completions", prompt=["of moons", "of tides"], n=2)
    texts = [choice["text"] for choice in made["choices"]]
    assert [choice["index"] for choice in made["choices"]] == [0, 1, 2, 3]
    assert ["of moons" in text for text in texts] == [True, True, False, False]
    tokens = answer("/v1/completions", prompt=[[1, 2], [3]])
    assert len(tokens["choices"]) == 2


def test_echo_comes_first_and_is_scored() -> None:
    [choice] = answer("/v1/completions", prompt="of tides", echo=True, logprobs=1)["choices"]
    assert choice["text"].startswith("of tides Simulated")
    scored = choice["logprobs"]
    assert "".join(scored["tokens"]) == choice["text"]
    for token, at in zip(scored["tokens"], scored["text_offset"], strict=True):
        assert choice["text"][at:].startswith(token)
    [choice] = answer("/v1/completions", prompt="of tides", echo=True, max_tokens=0)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("of tides", "length")


@pytest.mark.parametrize("stop", ["answer", ["no such", "answer"]], ids=["text", "list"])
def test_stop_sequences_end_the_text(stop: Any) -> None:
    made = answer(CHAT, messages=USER, stop=stop, max_tokens=4)
    assert made["choices"][0]["message"]["content"] == "Simulated "
    assert made["choices"][0]["finish_reason"] == "stop"
    assert made["usage"]["completion_tokens"] == 1


def test_a_seed_gives_one_answer_whatever_the_attempt() -> None:
    def bodies(**body: Any) -> set[bytes]:
        return {ask(CHAT, messages=USER, attempt=n, **body).body for n in range(1, 6)}

    assert len(bodies(seed=3)) == 1
    assert len(bodies()) > 1


@pytest.mark.parametrize("size", [1, 1024, 16_384])
def test_vectors_have_the_asked_dimension(size: int) -> None:
    body = {"input": ["a", [1, 2]], "dimensions": size}
    plain = answer("/v1/embeddings", **body)["data"]
    packed = answer("/v1/embeddings", encoding_format="base64", **body)["data"]
    for one, other in zip(plain, packed, strict=True):
        assert math.hypot(*one["embedding"]) == pytest.approx(1.0)
        values = unpack(f"<{size}f", base64.b64decode(other["embedding"]))
        assert values == pytest.approx(one["embedding"], rel=1e-6)


def test_moderations_tell_what_was_judged() -> None:
    [text] = answer("/v1/moderations", input="a")["results"]
    assert text["category_applied_input_types"]["violence"] == ["text"]
    made = answer("/v1/moderations", input=[{"type": "text", "text": "hi"}, IMAGE], model="")
    [both] = made["results"]
    assert made["model"] == "omni-moderation-latest"
    assert both["category_applied_input_types"]["violence"] == ["text", "image"]
    assert both["category_applied_input_types"]["hate"] == ["text"]
    assert set(both["categories"]) == set(both["category_scores"])
    assert len(both["categories"]) == 13
