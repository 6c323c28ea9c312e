"""Bodies as an OpenAI-compatible server would answer, made up from the request."""

from __future__ import annotations

import base64
import math
from itertools import chain, cycle, islice
from random import Random
from struct import pack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lowtide.domain.outcomes import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_EXCERPT = 200
_FILLER: Final = ("and", "the", "tide", "goes", "out", "and", "comes", "in", "again")
_BORN: Final = 1_735_689_600
_YEAR: Final = 31_536_000
_DIMENSIONS: Final = 16
_MOST_DIMENSIONS: Final = 4096


class _Request(msgspec.Struct):
    """What an answer depends on; a field of another type than documented is ignored."""

    model: object = ""
    messages: object = None
    input: object = None
    prompt: object = None
    max_tokens: object = None
    max_completion_tokens: object = None
    max_output_tokens: object = None
    dimensions: object = None
    encoding_format: object = None

    @property
    def limit(self) -> int | None:
        """The most tokens that the answer may have."""
        limits = (self.max_completion_tokens, self.max_output_tokens, self.max_tokens)
        return next((n for n in limits if isinstance(n, int) and n > 0), None)


class _Draft(msgspec.Struct, frozen=True):
    """A request with all that was drawn for its answer."""

    request: _Request
    id: str
    created: int
    tokens: int

    @property
    def cut(self) -> bool:
        """Whether the request's limit ends the answer early."""
        return self.request.limit is not None and self.tokens > self.request.limit

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return min(self.tokens, self.request.limit or self.tokens)


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode
_Made = tuple[dict[str, Any], Usage]


def answer(
    endpoint: str, body: bytes, digest: bytes, tokens: int, age: float
) -> tuple[int, str, Usage]:
    """Return status, JSON text and usage; the same arguments give the same answer.

    `tokens` is the length of the answer unless the request limits it; `age` in [0, 1) makes the
    creation time. A body that is no JSON object answers 400, an unknown endpoint 404.
    """
    make = _MAKERS.get(endpoint)
    if make is None:
        return 404, failure(f"Unknown endpoint {endpoint}.", "invalid_request_error"), Usage()
    try:
        request = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        message = "The request body must be a JSON object."
        return 400, failure(message, "invalid_request_error"), Usage()
    created = _BORN + int(age * _YEAR)
    made, usage = make(_Draft(request, digest.hex()[:24], created, tokens))
    return 200, _encode(made).decode(), usage


def failure(message: str, kind: str = "server_error") -> str:
    """Return OpenAI's error body as JSON text."""
    return _encode(
        {"error": {"message": message, "type": kind, "param": None, "code": None}}
    ).decode()


def _chat(draft: _Draft) -> _Made:
    prompt = _last_user_text(draft.request.messages)
    usage = _usage(prompt, draft)
    message = {"role": "assistant", "content": _reply(prompt, draft.length), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(draft)}
    return {
        "id": f"chatcmpl-{draft.id}",
        "object": "chat.completion",
        "created": draft.created,
        "model": draft.request.model,
        "choices": [choice],
        "usage": _counted(usage),
    }, usage


def _completion(draft: _Draft) -> _Made:
    prompt = _text(draft.request.prompt)
    usage = _usage(prompt, draft)
    text = _reply(prompt, draft.length)
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": _reason(draft)}
    return {
        "id": f"cmpl-{draft.id}",
        "object": "text_completion",
        "created": draft.created,
        "model": draft.request.model,
        "choices": [choice],
        "usage": _counted(usage),
    }, usage


def _response(draft: _Draft) -> _Made:
    given = draft.request.input
    prompt = given if isinstance(given, str) else _last_user_text(given)
    usage = _usage(prompt, draft)
    text = {"type": "output_text", "text": _reply(prompt, draft.length), "annotations": []}
    status = "incomplete" if draft.cut else "completed"
    message = {
        "type": "message",
        "id": f"msg_{draft.id}",
        "status": status,
        "role": "assistant",
        "content": [text],
    }
    return {
        "id": f"resp_{draft.id}",
        "object": "response",
        "created_at": draft.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if draft.cut else None,
        "model": draft.request.model,
        "output": [message],
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
    }, usage


def _embeddings(draft: _Draft) -> _Made:
    texts = _inputs(draft.request.input)
    wanted = draft.request.dimensions
    size = min(wanted, _MOST_DIMENSIONS) if isinstance(wanted, int) and wanted > 0 else _DIMENSIONS
    packed = draft.request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(text, size, packed=packed)}
        for index, text in enumerate(texts)
    ]
    usage = Usage(input_tokens=sum(map(_count, texts)))
    return {
        "object": "list",
        "data": data,
        "model": draft.request.model,
        "usage": {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens},
    }, usage


def _moderation(draft: _Draft) -> _Made:
    kinds = ("harassment", "hate", "self-harm", "sexual", "violence")
    result = {
        "flagged": False,
        "categories": dict.fromkeys(kinds, False),
        "category_scores": dict.fromkeys(kinds, 0.0),
    }
    results = [result for _ in _inputs(draft.request.input)]
    return {"id": f"modr-{draft.id}", "model": draft.request.model, "results": results}, Usage()


_MAKERS: Final[Mapping[str, Callable[[_Draft], _Made]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/embeddings": _embeddings,
    "/v1/responses": _response,
    "/v1/moderations": _moderation,
}


def _reply(prompt: str, tokens: int) -> str:
    words = chain(["Simulated", "answer", "to:"], prompt[:_EXCERPT].split(), cycle(_FILLER))
    return " ".join(islice(words, tokens))


def _reason(draft: _Draft) -> str:
    return "length" if draft.cut else "stop"


def _usage(prompt: str, draft: _Draft) -> Usage:
    return Usage(input_tokens=_count(prompt), output_tokens=draft.length)


def _counted(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _count(text: str) -> int:
    """Return about the tokens of a text: four characters each, as of English."""
    return 1 + len(text) // 4


def _last_user_text(messages: object) -> str:
    for message in reversed(messages) if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("role", "user") == "user":
            return _text(message.get("content"))
    return ""


def _text(content: object) -> str:
    """Return the text of a string, of a list of strings, or of a list of content parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return _text(content.get("text"))
    if isinstance(content, list):
        return " ".join(filter(None, map(_text, content)))
    return ""


def _inputs(given: object) -> list[str]:
    """Return the texts of an input; a list of token numbers counts as one text."""
    if isinstance(given, list) and given and not isinstance(given[0], int):
        return [each if isinstance(each, str) else _encode(each).decode() for each in given]
    return [given if isinstance(given, str) else _encode(given).decode()]


def _vector(text: str, size: int, *, packed: bool) -> list[float] | str:
    """Return the unit vector of a text, as numbers or as base64 of little-endian float32."""
    random = Random(text)  # noqa: S311
    raw = [random.gauss(0, 1) for _ in range(size)]
    norm = math.sqrt(sum(value * value for value in raw))
    vector = [value / norm for value in raw]
    return base64.b64encode(pack(f"<{size}f", *vector)).decode() if packed else vector
