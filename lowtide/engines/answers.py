"""Bodies as an OpenAI-compatible server would answer, made up from the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from lowtide.domain.outcomes import Usage
from lowtide.engines.simulation.chats import chat
from lowtide.engines.simulation.completions import completion
from lowtide.engines.simulation.drafts import BadRequest, Draft, Request, encode
from lowtide.engines.simulation.embeddings import embeddings
from lowtide.engines.simulation.moderations import moderation
from lowtide.engines.simulation.responses import response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowtide.engines.simulation.drafts import Made

_BORN: Final = 1_735_689_600
_YEAR: Final = 31_536_000
_REFUSED: Final = "invalid_request_error"

_decode = msgspec.json.Decoder(Request).decode


def answer(
    endpoint: str, body: bytes, digest: bytes, tokens: int, age: float
) -> tuple[int, bytes, Usage]:
    """Return status, JSON and usage; the same arguments give the same answer.

    `tokens` is the length of a text unless the request limits it; `age` in [0, 1) makes the
    creation time. A body that is no JSON object answers 400, as does a schema that is none; an
    unknown endpoint answers 404.
    """
    make = _MAKERS.get(endpoint)
    if make is None:
        return 404, failure(f"Unknown endpoint {endpoint}.", _REFUSED), Usage()
    try:
        request = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return 400, failure("The request body must be a JSON object.", _REFUSED), Usage()
    created = _BORN + int(age * _YEAR)
    try:
        made, usage = make(Draft(request, digest.hex()[:24], created, tokens))
    except BadRequest as error:
        return 400, failure(error.message, _REFUSED, error.param, error.code), Usage()
    return 200, encode(made), usage


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
