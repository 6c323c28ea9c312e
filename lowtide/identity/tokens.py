"""Verification of tokens, as RFC 8725 and RFC 9068 have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import jwt
import msgspec
from jwt.utils import base64url_decode

from lowtide.core.errors import Unauthenticated
from lowtide.identity.keys import IssuerKeys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.identity.model import Claims, Identity, Issuer, Issuers


MAX_TOKEN_BYTES: Final = 8190 - len("Authorization: Bearer \r\n")
"""What fits into a header field: `limit_request_field_size` in lowtide/serving.py."""
LEEWAY_SECONDS: Final = 30
"""Difference of clocks that is tolerated."""
_MAX_KEY_ID: Final = 256
_TYPES: Final = {"jwt", "at+jwt", "application/at+jwt"}
_REASONS: Final[Mapping[type[jwt.PyJWTError], str]] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidSignatureError: "its signature does not verify",
    jwt.InvalidKeyError: "its key is too short",
}
_REQUIRED: Final = ("iss", "aud", "exp", "sub")
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class TokenVerifier:
    """Verification of the tokens of all trusted issuers; thread-safe."""

    def __init__(
        self,
        issuers: Issuers,
        keys: Mapping[str, IssuerKeys] | None = None,
        *,
        max_bytes: int = MAX_TOKEN_BYTES,
    ) -> None:
        self._issuers = issuers
        self._max_bytes = max_bytes
        self._keys = keys or {issuer.url: IssuerKeys(issuer) for issuer in issuers.all}

    def identity(self, token: str) -> Identity:
        """Return who a token speaks for; raises Unauthenticated or Unavailable."""
        issuer, claims = self.claims(token)
        return issuer.identity(claims)

    def claims(self, token: str) -> tuple[Issuer, Claims]:
        """Return the issuer and the claims of a valid token; raises Unauthenticated or Unavailable."""
        if len(token) > self._max_bytes:
            raise refused(f"it is longer than {self._max_bytes:,} bytes")
        header, unverified = _unverified(token)
        issuer = self._issuers.get(str(unverified.get("iss", "")))
        if issuer is None:
            raise refused("its issuer is not trusted here")
        algorithm, key_id = _checked(header, issuer)
        key = self._keys[issuer.url].find(key_id, algorithm)
        if key is None:
            raise refused("its key is not one of its issuer's")
        try:
            claims: Claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=issuer.audiences,
                issuer=issuer.url,
                leeway=LEEWAY_SECONDS,
                options={"require": list(_REQUIRED), "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise refused(_reason(error, issuer)) from error
        return issuer, claims


def refused(reason: str) -> Unauthenticated:
    """Return the error for a token that is not accepted."""
    return Unauthenticated(f"The token is refused: {reason}.", code="invalid_token")


def _unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the claims, which only say what to verify; raises Unauthenticated."""
    try:
        header, claims, _ = (base64url_decode(part) for part in token.split("."))
        return _decode(header), _decode(claims)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise refused("it is damaged") from error


def _checked(header: dict[str, Any], issuer: Issuer) -> tuple[str, str | None]:
    """Return the algorithm and the id of the key; raises Unauthenticated.

    Keys that a token brings or points to (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
    """
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if algorithm not in issuer.algorithms:
        raise refused(f"its signature must be one of {', '.join(issuer.algorithms)}")
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= _MAX_KEY_ID):
        raise refused("its kid is not the id of a key")
    if kind is not None and not (isinstance(kind, str) and kind.lower() in _TYPES):
        raise refused("it is of another kind than JWT or at+jwt")
    if "crit" in header or "b64" in header or "zip" in header:
        raise refused("it has extensions that are not supported")
    return algorithm, key_id


def _reason(error: jwt.PyJWTError, issuer: Issuer) -> str:
    if isinstance(error, jwt.InvalidAudienceError):
        return (
            f"it is not meant for this service, whose audience is {' or '.join(issuer.audiences)}"
        )
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it has no claim {error.claim}"
    return _REASONS.get(type(error), "it is damaged")
