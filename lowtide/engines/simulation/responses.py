"""The Responses API: one message or function calls, and an echo of the request's fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lowtide.engines.outcomes import Usage
from lowtide.engines.simulation.requests import BadRequest, count, last_user_text, write
from lowtide.engines.simulation.structure import formatted_text

if TYPE_CHECKING:
    from lowtide.engines.simulation.requests import Draft, Made, Written
    from lowtide.engines.simulation.tools import Call


_LOGPROBS: Final = "message.output_text.logprobs"
_VERBOSITIES: Final = ("low", "medium", "high")


def response(draft: Draft) -> Made:
    """Return the answer of `/v1/responses`."""
    request = draft.request
    prompt = request.input if isinstance(request.input, str) else last_user_text(request.input)
    output, tokens, cut = _output(draft, prompt)
    usage = Usage(count(prompt), tokens)
    status = "incomplete" if cut else "completed"
    return {
        "id": f"resp_{draft.id}",
        "object": "response",
        "created_at": draft.created,
        "completed_at": None if cut else draft.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": request.model,
        "output": output,
        "service_tier": "default",
        "usage": _usage(usage),
    } | _echo(draft), usage


def _output(draft: Draft, prompt: str) -> tuple[list[dict[str, Any]], int, bool]:
    """Return the items, their number of tokens, and whether the limit cut them."""
    request = draft.request
    if request.tools:
        from lowtide.engines.simulation.tools import choose, response_tools

        tools = response_tools(request.tools)
        if calls := choose(draft, tools, request.tool_choice, request.input):
            tokens = sum(call.given.tokens for call in calls)
            return [_call(call) for call in calls], tokens, calls[-1].given.cut
    config = request.text if isinstance(request.text, dict) else {}
    written = formatted_text(draft, prompt, config.get("format")) or write(draft, prompt)
    return [_message(draft, written)], written.tokens, written.cut


def _message(draft: Draft, written: Written) -> dict[str, Any]:
    text = {
        "type": "output_text",
        "text": written.text,
        "annotations": [],
        "logprobs": _logprobs(draft, written),
    }
    return {
        "type": "message",
        "id": f"msg_{draft.id}",
        "status": "incomplete" if written.cut else "completed",
        "role": "assistant",
        "content": [text],
    }


def _logprobs(draft: Draft, written: Written) -> list[dict[str, Any]]:
    included = draft.request.include
    if not isinstance(included, list) or _LOGPROBS not in included:
        return []
    from lowtide.engines.simulation.requests import MAX_TOP, chat_logprobs

    top = draft.request.top_logprobs or 0
    if type(top) is not int or not 0 <= top <= MAX_TOP:
        raise BadRequest(f"'top_logprobs' must be between 0 and {MAX_TOP}.", "top_logprobs")
    return chat_logprobs(written.split(), top, draft.random())


def _call(call: Call) -> dict[str, Any]:
    kind, field = ("custom_tool", "input") if call.tool.custom else ("function", "arguments")
    item = {
        "type": f"{kind}_call",
        "id": f"{'ctc' if call.tool.custom else 'fc'}_{call.number}",
        "call_id": call.id,
        "name": call.tool.name,
        field: call.given.text,
    }
    status = "incomplete" if call.given.cut else "completed"
    return item if call.tool.custom else item | {"status": status}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _echo(draft: Draft) -> dict[str, Any]:
    """Return the request's fields that a response repeats; defaults for those of a wrong type."""
    request = draft.request
    instructions = request.instructions
    return {
        "instructions": instructions if isinstance(instructions, str | list) else None,
        "previous_response_id": _text(request.previous_response_id),
        "metadata": request.metadata if isinstance(request.metadata, dict) else {},
        "max_output_tokens": request.limit,
        "max_tool_calls": _number(request.max_tool_calls),
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "prompt_cache_key": _text(request.prompt_cache_key),
        "reasoning": _reasoning_config(request.reasoning),
        "safety_identifier": _text(request.safety_identifier),
        "temperature": _number(request.temperature, 1.0),
        "text": _text_config(request.text),
        "tool_choice": "auto" if request.tool_choice is None else request.tool_choice,
        "tools": [_tool(tool) for tool in request.tools or ()]
        if isinstance(request.tools, list | None)
        else [],
        "top_logprobs": _number(request.top_logprobs, 0),
        "top_p": _number(request.top_p, 1.0),
        "truncation": _text(request.truncation) or "disabled",
        "user": _text(request.user),
    }


def _text_config(value: object) -> dict[str, Any]:
    config = value if isinstance(value, dict) else {}
    format_ = config.get("format") or {"type": "text"}
    if format_.get("type") == "json_schema":
        format_ = {"description": None, "strict": False, "schema": {}} | format_
    verbosity = config.get("verbosity")
    return {
        "format": format_,
        "verbosity": verbosity if verbosity in _VERBOSITIES else "medium",
    }


def _tool(value: object) -> object:
    if isinstance(value, dict) and value.get("type") == "function":
        return {"description": None, "parameters": None, "strict": True} | value
    return value


def _reasoning_config(value: object) -> dict[str, Any]:
    config: dict[str, Any] = value if isinstance(value, dict) else {}
    return {"effort": config.get("effort"), "summary": config.get("summary")}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object, default: float | None = None) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and isinstance(value, int | float) else default
