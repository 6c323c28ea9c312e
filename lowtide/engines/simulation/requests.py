"""The simulated engine's requests, the words of its answers, and their log probabilities."""

from __future__ import annotations

import math
import re
from itertools import chain, cycle, islice
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lowtide.engines.outcomes import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence


FINGERPRINT: Final = "fp_simulated"
Made = tuple[dict[str, Any], Usage]
"""The body of an answer, and its usage."""

_EXCERPT = 200
_FILLER: Final = ("and", "the", "tide", "goes", "out", "and", "comes", "in", "again")
_MAX_CHOICES: Final = 128
_WORD = re.compile(r"\s*\S+|\s+$")
CHARACTERS: Final = 4
"""Characters per token, as in English."""

encode = msgspec.json.Encoder().encode


class BadRequest(Exception):
    """A request that a real server answers with 400."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class Request(msgspec.Struct):
    """The fields that an answer depends on; a value of an undocumented type is ignored."""

    model: object = ""
    messages: object = None
    input: object = None
    prompt: object = None
    max_tokens: object = None
    max_completion_tokens: object = None
    max_output_tokens: object = None
    dimensions: object = None
    encoding_format: object = None
    n: object = None
    stop: object = None
    echo: object = None
    logprobs: object = None
    top_logprobs: object = None
    response_format: object = None
    guided_json: object = None
    structured_outputs: object = None
    tools: object = None
    tool_choice: object = None
    parallel_tool_calls: object = None
    functions: object = None
    function_call: object = None
    text: object = None
    instructions: object = None
    previous_response_id: object = None
    metadata: object = None
    temperature: object = None
    top_p: object = None
    truncation: object = None
    reasoning: object = None
    include: object = None
    user: object = None
    max_tool_calls: object = None
    prompt_cache_key: object = None
    safety_identifier: object = None

    @property
    def limit(self) -> int | None:
        """The max number of tokens in the answer; None without a limit."""
        limits = (self.max_completion_tokens, self.max_output_tokens, self.max_tokens)
        return next((n for n in limits if type(n) is int and n > 0), None)

    @property
    def choices(self) -> int:
        """The number of choices wanted; raises BadRequest if it is invalid."""
        if self.n is None:
            return 1
        if type(self.n) is not int or not 1 <= self.n <= _MAX_CHOICES:
            raise BadRequest(f"'n' must be between 1 and {_MAX_CHOICES}.", "n")
        return self.n


class Draft(msgspec.Struct, frozen=True):
    """A request with the values drawn for its answer."""

    request: Request
    id: str
    created: int
    tokens: int

    def random(self, choice: int = 0) -> Random:
        """Return the generator of all other draws for a choice."""
        return Random(f"{self.id} {choice}")  # noqa: S311


class Written(msgspec.Struct, frozen=True):
    """Text of an answer. `cut`: by the token limit; `chunked`: tokens are not words."""

    text: str
    tokens: int
    cut: bool = False
    chunked: bool = False

    def split(self) -> list[str]:
        """Return the text's tokens."""
        if not self.chunked:
            return _WORD.findall(self.text)
        return [self.text[at : at + CHARACTERS] for at in range(0, len(self.text), CHARACTERS)]


def write(draft: Draft, prompt: str, choice: int = 0) -> Written:
    """Return words that echo the prompt, as many as drawn, cut at the limit or stop sequence."""
    limit = draft.request.limit
    tokens = draft.tokens if limit is None else min(draft.tokens, limit)
    filler = _FILLER[choice % len(_FILLER) :] + _FILLER[: choice % len(_FILLER)]
    words = chain(("Simulated", "answer", "to:"), prompt[:_EXCERPT].split(), cycle(filler))
    text = " ".join(islice(words, tokens))
    written = Written(text, tokens, cut=tokens < draft.tokens)
    return written if draft.request.stop is None else _cut_at_stop(written, draft.request.stop)


def shorten(draft: Draft, text: str) -> Written:
    """Return text that does not consist of words, cut at the limit or stop sequence."""
    limit = draft.request.limit
    tokens = -(-len(text) // CHARACTERS)
    cut = limit is not None and tokens > limit
    if limit is not None and cut:
        text, tokens = text[: limit * CHARACTERS], limit
    return _cut_at_stop(Written(text, tokens, cut, chunked=True), draft.request.stop)


def _cut_at_stop(written: Written, stop: object) -> Written:
    """Return the text up to its first stop sequence."""
    sequences = stop if isinstance(stop, list) else [stop]
    positions = (written.text.find(s) for s in sequences if isinstance(s, str) and s)
    if (end := min((position for position in positions if position >= 0), default=-1)) < 0:
        return written
    text = written.text[:end]
    tokens = -(-end // CHARACTERS) if written.chunked else len(text.split())
    return Written(text, tokens, chunked=written.chunked)


def finish_reason(written: Written) -> str:
    """Return the finish reason of a choice of text."""
    return "length" if written.cut else "stop"


def completion_usage(usage: Usage) -> dict[str, Any]:
    """Return the `usage` of chat and completions."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def count(text: str) -> int:
    """Return the approximate number of tokens in a text."""
    return 1 + len(text) // CHARACTERS


def last_user_text(messages: object) -> str:
    """Return the text of the last user message; empty without one."""
    for message in reversed(messages) if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("role", "user") == "user":
            return text_of(message.get("content"))
    return ""


def text_of(content: object) -> str:
    """Return the text of a string, of a list of strings, or of a list of content parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return text_of(content.get("text"))
    if isinstance(content, list):
        return " ".join(filter(None, map(text_of, content)))
    return ""


def inputs(value: object) -> list[str]:
    """Return the texts of an input; a list of token numbers counts as one text."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return [item if isinstance(item, str) else encode(item).decode() for item in value]
    return [value if isinstance(value, str) else encode(value).decode()]


_OTHERS: Final = (" and", " the", " of", " to", " a", " in", " is", " it", " that", " for")
MAX_TOP: Final = 20


def chat_logprobs(tokens: Sequence[str], top: int, random: Random) -> list[dict[str, Any]]:
    """Return the entries of `logprobs.content`, each with `top` alternatives."""
    entries: list[dict[str, Any]] = []
    for token in tokens:
        ranked = _rank(token, top, random)
        entries.append(
            _entry(token, ranked[0][1])
            | {"top_logprobs": [_entry(*alternative) for alternative in ranked[:top]]}
        )
    return entries


def completion_logprobs(
    tokens: Sequence[str], top: int, random: Random, *, start: int = 0
) -> dict[str, Any]:
    """Return a completion's `logprobs`; offsets count from `start`."""
    ranks = [_rank(token, top, random) for token in tokens]
    offsets, at = [], start
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "tokens": list(tokens),
        "token_logprobs": [ranked[0][1] for ranked in ranks],
        "top_logprobs": [dict(ranked[:top]) for ranked in ranks] if top else None,
        "text_offset": offsets,
    }


def _rank(token: str, top: int, random: Random) -> list[tuple[str, float]]:
    """Return the token and its alternatives, most likely first."""
    remaining = 1.0
    ranked: list[tuple[str, float]] = []
    others = [other for other in _OTHERS if other != token]
    for rank in range(max(1, top)):
        share = remaining * random.uniform(0.5, 0.9)
        remaining -= share
        name = token if not rank else others[(rank - 1) % len(others)] * (1 + rank // len(others))
        ranked.append((name, math.log(share)))
    return ranked


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
