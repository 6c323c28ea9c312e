"""Log probabilities of tokens: made up, but ordered and in each API's shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

_OTHERS: Final = (" and", " the", " of", " to", " a", " in", " is", " it", " that", " for")
MAX_TOP: Final = 20


def chat_logprobs(tokens: Sequence[str], top: int, random: Random) -> list[dict[str, Any]]:
    """Return the entries of `logprobs.content`, each with `top` alternatives."""
    found: list[dict[str, Any]] = []
    for token in tokens:
        ranked = _ranked(token, top, random)
        found.append(
            _entry(token, ranked[0][1]) | {"top_logprobs": [_entry(*each) for each in ranked[:top]]}
        )
    return found


def completion_logprobs(
    tokens: Sequence[str], top: int, random: Random, *, start: int = 0
) -> dict[str, Any]:
    """Return a completion's `logprobs`; offsets count from `start`."""
    ranks = [_ranked(token, top, random) for token in tokens]
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


def _ranked(token: str, top: int, random: Random) -> list[tuple[str, float]]:
    """Return the token and alternatives, the likeliest first."""
    left = 1.0
    ranked: list[tuple[str, float]] = []
    others = [other for other in _OTHERS if other != token]
    for rank in range(max(1, top)):
        share = left * random.uniform(0.5, 0.9)
        left -= share
        name = token if not rank else others[(rank - 1) % len(others)] * (1 + rank // len(others))
        ranked.append((name, math.log(share)))
    return ranked


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
