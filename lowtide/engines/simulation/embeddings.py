"""Embeddings: a unit vector of each input, the same for the same text."""

from __future__ import annotations

import base64
import math
from hashlib import shake_256
from struct import pack, unpack
from typing import TYPE_CHECKING, Final

from lowtide.domain.outcomes import Usage
from lowtide.engines.simulation.drafts import BadRequest, count, inputs

if TYPE_CHECKING:
    from lowtide.engines.simulation.drafts import Draft, Made

DIMENSIONS: Final = 16
"""Of a vector when the request asks for none; real models have 768 to 4,096."""
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


def _size(wanted: object) -> int:
    if wanted is None:
        return DIMENSIONS
    if type(wanted) is not int or not 1 <= wanted <= MAX_DIMENSIONS:
        raise BadRequest(f"'dimensions' must be between 1 and {MAX_DIMENSIONS}.", "dimensions")
    return wanted


def _vector(text: str, size: int, *, packed: bool) -> list[float] | str:
    """Return the unit vector of a text, as numbers or as base64 of little-endian float32."""
    raw = unpack(f"<{size}h", shake_256(text.encode()).digest(2 * size))
    norm = math.hypot(*raw) or 1.0
    vector = [value / norm for value in raw]
    return base64.b64encode(pack(f"<{size}f", *vector)).decode() if packed else vector
