"""Tool calls: the choice of tools, and arguments that are valid for their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowtide.engines.simulation.requests import BadRequest, shorten
from lowtide.engines.simulation.structure import instance_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from lowtide.engines.simulation.requests import Draft, Written


_MAX_CALLS = 2


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that can be called; `custom` tools take text."""

    name: str
    parameters: object
    where: str
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A tool and its input text; `number` distinguishes the calls of one answer."""

    tool: Tool
    given: Written
    number: str

    @property
    def id(self) -> str:
        """The id that the tool's result must refer to."""
        return f"call_{self.number}"


def called(draft: Draft, choice: int) -> tuple[dict[str, Any], int] | None:
    """Return the message, finish reason and tokens of a choice with tool calls; None without."""
    request = draft.request
    if request.tools is None and request.functions is not None:
        return _legacy(draft, choice)
    calls = choose(draft, chat_tools(request.tools), request.tool_choice, request.messages, choice)
    if not calls:
        return None
    message = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "tool_calls": [_chat_call(call) for call in calls],
    }
    return {"message": message, "finish_reason": _reason(calls, "tool_calls")}, _tokens(calls)


def choose(
    draft: Draft, tools: Sequence[Tool], choice: object, turns: object, number: int = 0
) -> list[Call]:
    """Return the calls to make; none if the answer is to be text.

    In mode `auto` a tool's result as the last turn is answered with text, as a model would.
    """
    mode, candidates = _parse_choice(tools, choice)
    if mode == "none" or not candidates or (mode == "auto" and _has_result(turns)):
        return []
    random = draft.random(number)
    picks = [random.choice(candidates)]
    if draft.request.parallel_tool_calls is not False and mode != "named":
        picks += random.choices(candidates, k=random.randrange(_MAX_CALLS))
    calls: list[Call] = []
    for index, tool in enumerate(picks):
        written = shorten(draft, _input_text(draft, tool, random))
        calls.append(Call(tool, written, f"{draft.id}{number}{index}"))
        if written.cut:
            break
    return calls


def chat_tools(value: object) -> list[Tool]:
    """Return the tools of a chat, each described in a field named after its type."""
    if not isinstance(value, list):
        raise BadRequest("'tools' must be an array.", "tools")
    tools: list[Tool] = []
    for index, item in enumerate(value):
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in {"function", "custom"}:
            raise BadRequest(
                f"Invalid value for 'tools[{index}].type': use 'function' or 'custom'.",
                f"tools[{index}].type",
            )
        tools.append(_tool(item.get(kind), f"tools[{index}].{kind}", custom=kind == "custom"))
    return tools


def response_tools(value: object) -> list[Tool]:
    """Return the callable tools of a Responses API request; hosted tools are skipped."""
    if not isinstance(value, list):
        raise BadRequest("'tools' must be an array.", "tools")
    return [
        _tool(item, f"tools[{index}]", custom=item["type"] == "custom")
        for index, item in enumerate(value)
        if isinstance(item, dict) and item.get("type") in {"function", "custom"}
    ]


def _tool(value: object, where: str, *, custom: bool = False) -> Tool:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(name, str) or not name:
        raise BadRequest(
            f"Missing required parameter: '{where}.name'.",
            f"{where}.name",
            "missing_required_parameter",
        )
    parameters = value.get("parameters")
    return Tool(name, {"type": "object"} if parameters is None else parameters, where, custom)


def _parse_choice(tools: Sequence[Tool], choice: object) -> tuple[str, Sequence[Tool]]:
    """Return the mode and the tools that may be called."""
    if choice is None:
        return "auto", tools
    if isinstance(choice, str):
        if choice not in {"none", "auto", "required"}:
            raise BadRequest(
                "'tool_choice' must be none, auto, required or name a tool.", "tool_choice"
            )
        return choice, tools
    if not isinstance(choice, dict):
        raise BadRequest("'tool_choice' must be a string or an object.", "tool_choice")
    if choice.get("type") == "allowed_tools":
        allowed = _inner(choice, "allowed_tools")
        names = {_name(tool) for tool in allowed.get("tools", ()) if isinstance(tool, dict)}
        return str(allowed.get("mode", "auto")), [tool for tool in tools if tool.name in names]
    named = [tool for tool in tools if tool.name == _name(choice)]
    if not named:
        raise BadRequest(
            f"Tool choice {_name(choice)!r} not found in 'tools' parameter.", "tool_choice"
        )
    return "named", named


def _name(tool: Mapping[str, Any]) -> object:
    """Return a tool's name, in either API's shape."""
    return _inner(tool, str(tool.get("type"))).get("name")


def _inner(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else value


def _has_result(turns: object) -> bool:
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict):
        return False
    return last.get("role") in {"tool", "function"} or str(last.get("type")).endswith("_output")


def _input_text(draft: Draft, tool: Tool, random: Random) -> str:
    if tool.custom:
        return f"Simulated input of {tool.name}, {draft.id}"
    where = f"{tool.where.removesuffix('.function')}.parameters"
    owner = f"function '{tool.name}'"
    return instance_text(tool.parameters, random, owner, where, "invalid_function_parameters")


def _chat_call(call: Call) -> dict[str, Any]:
    kind, field = ("custom", "input") if call.tool.custom else ("function", "arguments")
    return {"id": call.id, "type": kind, kind: {"name": call.tool.name, field: call.given.text}}


def _legacy(draft: Draft, choice: int) -> tuple[dict[str, Any], int] | None:
    """Return a call in the shape of `functions`, the predecessor of tools."""
    request = draft.request
    functions = request.functions if isinstance(request.functions, list) else []
    tools = [_tool(function, f"functions[{index}]") for index, function in enumerate(functions)]
    function_call = request.function_call
    calls = choose(draft, tools, function_call, request.messages, choice)[:1]
    if not calls:
        return None
    call = {"name": calls[0].tool.name, "arguments": calls[0].given.text}
    message = {"role": "assistant", "content": None, "refusal": None, "function_call": call}
    return {"message": message, "finish_reason": _reason(calls, "function_call")}, _tokens(calls)


def _reason(calls: Sequence[Call], reason: str) -> str:
    return "length" if calls[-1].given.cut else reason


def _tokens(calls: Sequence[Call]) -> int:
    return sum(call.given.tokens for call in calls)
