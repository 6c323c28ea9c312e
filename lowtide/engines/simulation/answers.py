"""Answers of the simulated engine: chat completions, completions, embeddings, moderations."""

from __future__ import annotations

import base64
import math
from hashlib import shake_256
from struct import pack, unpack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lowtide.engines.outcomes import Usage
from lowtide.engines.simulation.requests import (
    FINGERPRINT,
    BadRequest,
    Draft,
    Request,
    Written,
    completion_usage,
    count,
    encode,
    finish_reason,
    inputs,
    last_user_text,
    write,
)
from lowtide.engines.simulation.responses import response
from lowtide.engines.simulation.structure import structured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from lowtide.engines.simulation.requests import Made


def chat(draft: Draft) -> Made:
    """Return the answer of `/v1/chat/completions`."""
    request = draft.request
    prompt = last_user_text(request.messages)
    choices = [_chat_choice(draft, prompt, index) for index in range(request.choices)]
    usage = Usage(count(prompt), sum(tokens for _, tokens in choices))
    return {
        "id": f"chatcmpl-{draft.id}",
        "object": "chat.completion",
        "created": draft.created,
        "model": request.model,
        "choices": [choice for choice, _ in choices],
        "usage": completion_usage(usage),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }, usage


def _chat_choice(draft: Draft, prompt: str, index: int) -> tuple[dict[str, Any], int]:
    """Return a choice and its number of tokens."""
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
    from lowtide.engines.simulation.requests import MAX_TOP, chat_logprobs

    top = draft.request.top_logprobs or 0
    if type(top) is not int or not 0 <= top <= MAX_TOP:
        raise BadRequest(f"'top_logprobs' must be between 0 and {MAX_TOP}.", "top_logprobs")
    content = chat_logprobs(written.split(), top, draft.random(index))
    return {"content": content, "refusal": None}


_MAX_LOGPROBS = 5


def completion(draft: Draft) -> Made:
    """Return the answer of `/v1/completions`."""
    prompts = inputs("" if draft.request.prompt is None else draft.request.prompt)
    per_prompt = draft.request.choices
    choices: list[dict[str, Any]] = []
    output_tokens = 0
    for prompt in prompts:
        for _ in range(per_prompt):
            written = _write_text(draft, prompt, len(choices))
            output_tokens += written.tokens
            choices.append(_completion_choice(draft, prompt, written, len(choices)))
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


def _write_text(draft: Draft, prompt: str, index: int) -> Written:
    # With `echo`, a limit of 0 asks for the prompt's own log probabilities.
    if type(draft.request.max_tokens) is int and draft.request.max_tokens == 0:
        return Written("", 0, cut=True)
    return structured(draft, prompt, index) or write(draft, prompt, index)


def _completion_choice(draft: Draft, prompt: str, written: Written, index: int) -> dict[str, Any]:
    echoed = prompt if draft.request.echo is True else ""
    joint = " " if echoed and written.text else ""
    choice: dict[str, Any] = {
        "text": echoed + joint + written.text,
        "index": index,
        "logprobs": None,
        "finish_reason": finish_reason(written),
    }
    top = draft.request.logprobs
    if top is not None:
        from lowtide.engines.simulation.requests import completion_logprobs

        if type(top) is not int or not 0 <= top <= _MAX_LOGPROBS:
            raise BadRequest(f"'logprobs' must be between 0 and {_MAX_LOGPROBS}.", "logprobs")
        tokens = Written(echoed + joint, 0).split() + written.split()
        choice["logprobs"] = completion_logprobs(tokens, top, draft.random(index))
    return choice


DIMENSIONS: Final = 16
"""Dimensions of a vector if the request names none; real models have 768 to 4,096."""
MAX_DIMENSIONS: Final = 16_384


def embeddings(draft: Draft) -> Made:
    """Return the answer of `/v1/embeddings`."""
    texts = inputs(draft.request.input)
    size = _size(draft.request.dimensions)
    packed = draft.request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(text, size, packed=packed)}
        for index, text in enumerate(texts)
    ]
    usage = Usage(input_tokens=sum(map(count, texts)))
    return {
        "object": "list",
        "data": data,
        "model": draft.request.model,
        "usage": {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens},
    }, usage


def _size(dimensions: object) -> int:
    if dimensions is None:
        return DIMENSIONS
    if type(dimensions) is not int or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise BadRequest(f"'dimensions' must be between 1 and {MAX_DIMENSIONS}.", "dimensions")
    return dimensions


def _vector(text: str, size: int, *, packed: bool) -> list[float] | str:
    """Return the unit vector of a text, as numbers or as base64 of little-endian float32."""
    raw = unpack(f"<{size}h", shake_256(text.encode()).digest(2 * size))
    norm = math.hypot(*raw) or 1.0
    vector = [value / norm for value in raw]
    return base64.b64encode(pack(f"<{size}f", *vector)).decode() if packed else vector


_MODEL: Final = "omni-moderation-latest"
_TEXT_ONLY: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "sexual/minors",
)
_IMAGES_TOO: Final = (
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "violence",
    "violence/graphic",
)
_HIGHEST_SCORE: Final = 0.01


def moderation(draft: Draft) -> Made:
    """Return the answer of `/v1/moderations`."""
    content = draft.request.input
    random = draft.random()
    # Content parts are moderated together, texts of a list one by one.
    if isinstance(content, list) and content and isinstance(content[0], dict):
        kinds = {part.get("type") for part in content if isinstance(part, dict)}
        results = [_result(random, text="text" in kinds, image="image_url" in kinds)]
    else:
        results = [_result(random, text=True, image=False) for _ in inputs(content)]
    model = draft.request.model or _MODEL
    return {"id": f"modr-{draft.id}", "model": model, "results": results}, Usage()


def _result(random: Random, *, text: bool, image: bool) -> dict[str, Any]:
    applied = {name: ["text"] if text else [] for name in _TEXT_ONLY}
    modalities = [kind for kind, present in (("text", text), ("image", image)) if present]
    applied |= dict.fromkeys(_IMAGES_TOO, modalities)
    return {
        "flagged": False,
        "categories": dict.fromkeys(applied, False),
        "category_scores": {name: random.random() * _HIGHEST_SCORE for name in applied},
        "category_applied_input_types": applied,
    }


_BORN: Final = 1_735_689_600
_YEAR: Final = 31_536_000
_INVALID: Final = "invalid_request_error"

_decode = msgspec.json.Decoder(Request).decode


def answer(
    endpoint: str, body: bytes, digest: bytes, tokens: int, age: float
) -> tuple[int, bytes, Usage]:
    """Return status, JSON and usage; the same arguments give the same answer.

    `tokens` is the length of a text unless the request limits it; `age` in [0, 1) determines the
    creation time. The status is 400 for a body that is not a JSON object and for an invalid
    schema, 404 for an unknown endpoint.
    """
    make = _MAKERS.get(endpoint)
    if make is None:
        return 404, failure(f"Unknown endpoint {endpoint}.", _INVALID), Usage()
    try:
        request = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return 400, failure("The request body must be a JSON object.", _INVALID), Usage()
    created = _BORN + int(age * _YEAR)
    try:
        content, usage = make(Draft(request, digest.hex()[:24], created, tokens))
    except BadRequest as error:
        return 400, failure(error.message, _INVALID, error.param, error.code), Usage()
    return 200, encode(content), usage


def failure(
    message: str, kind: str = "server_error", param: str | None = None, code: str | None = None
) -> bytes:
    """Return OpenAI's error body as JSON."""
    return encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


_MAKERS: Final[Mapping[str, Callable[[Draft], Made]]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/embeddings": embeddings,
    "/v1/responses": response,
    "/v1/moderations": moderation,
}
