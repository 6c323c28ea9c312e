"""Chat completions: text, structured text or tool calls, `n` times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowtide.domain.outcomes import Usage
from lowtide.engines.simulation.drafts import (
    FINGERPRINT,
    BadRequest,
    completion_usage,
    count,
    finish_reason,
    last_user_text,
    write,
)
from lowtide.engines.simulation.structure import structured

if TYPE_CHECKING:
    from lowtide.engines.simulation.drafts import Draft, Made, Written


def chat(draft: Draft) -> Made:
    """Return the answer of `/v1/chat/completions`."""
    request = draft.request
    prompt = last_user_text(request.messages)
    made = [_choice(draft, prompt, index) for index in range(request.choices)]
    usage = Usage(count(prompt), sum(tokens for _, tokens in made))
    return {
        "id": f"chatcmpl-{draft.id}",
        "object": "chat.completion",
        "created": draft.created,
        "model": request.model,
        "choices": [choice for choice, _ in made],
        "usage": completion_usage(usage),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }, usage


def _choice(draft: Draft, prompt: str, index: int) -> tuple[dict[str, Any], int]:
    """Return a choice and its tokens."""
    request = draft.request
    if request.tools is not None or request.functions is not None:
        from lowtide.engines.simulation.tools import called

        if calls := called(draft, index):
            return {"index": index, "logprobs": None} | calls[0], calls[1]
    written = structured(draft, prompt, index) or write(draft, prompt, index)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": written.text,
        "refusal": None,
        "annotations": [],
    }
    choice = {
        "index": index,
        "message": message,
        "logprobs": _logprobs(draft, written, index) if request.logprobs is True else None,
        "finish_reason": finish_reason(written),
    }
    return choice, written.tokens


def _logprobs(draft: Draft, written: Written, index: int) -> dict[str, Any]:
    from lowtide.engines.simulation.logprobs import MAX_TOP, chat_logprobs

    top = draft.request.top_logprobs or 0
    if type(top) is not int or not 0 <= top <= MAX_TOP:
        raise BadRequest(f"'top_logprobs' must be between 0 and {MAX_TOP}.", "top_logprobs")
    content = chat_logprobs(written.split(), top, draft.random(index))
    return {"content": content, "refusal": None}
