"""Legacy completions: `n` choices of each prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowtide.domain.outcomes import Usage
from lowtide.engines.simulation.drafts import (
    FINGERPRINT,
    BadRequest,
    Written,
    completion_usage,
    count,
    finish_reason,
    inputs,
    write,
)
from lowtide.engines.simulation.structure import structured

if TYPE_CHECKING:
    from lowtide.engines.simulation.drafts import Draft, Made

_MAX_LOGPROBS = 5


def completion(draft: Draft) -> Made:
    """Return the answer of `/v1/completions`."""
    prompts = inputs("" if draft.request.prompt is None else draft.request.prompt)
    each = draft.request.choices
    choices: list[dict[str, Any]] = []
    output_tokens = 0
    for prompt in prompts:
        for _ in range(each):
            written = _written(draft, prompt, len(choices))
            output_tokens += written.tokens
            choices.append(_choice(draft, prompt, written, len(choices)))
    usage = Usage(sum(map(count, prompts)), output_tokens)
    return {
        "id": f"cmpl-{draft.id}",
        "object": "text_completion",
        "created": draft.created,
        "model": draft.request.model,
        "choices": choices,
        "usage": completion_usage(usage),
        "system_fingerprint": FINGERPRINT,
    }, usage


def _written(draft: Draft, prompt: str, index: int) -> Written:
    # With `echo`, a limit of 0 asks for the prompt's own log probabilities.
    if type(draft.request.max_tokens) is int and draft.request.max_tokens == 0:
        return Written("", 0, cut=True)
    return structured(draft, prompt, index) or write(draft, prompt, index)


def _choice(draft: Draft, prompt: str, written: Written, index: int) -> dict[str, Any]:
    echoed = prompt if draft.request.echo is True else ""
    joint = " " if echoed and written.text else ""
    choice: dict[str, Any] = {
        "text": echoed + joint + written.text,
        "index": index,
        "logprobs": None,
        "finish_reason": finish_reason(written),
    }
    wanted = draft.request.logprobs
    if wanted is not None:
        from lowtide.engines.simulation.logprobs import completion_logprobs

        if type(wanted) is not int or not 0 <= wanted <= _MAX_LOGPROBS:
            raise BadRequest(f"'logprobs' must be between 0 and {_MAX_LOGPROBS}.", "logprobs")
        tokens = Written(echoed + joint, 0).split() + written.split()
        choice["logprobs"] = completion_logprobs(tokens, wanted, draft.random(index))
    return choice
