"""The public keys of an issuer: cached, read again for an unknown one, kept through an outage."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import msgspec
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from lowtide.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.identity.model import Issuer


_log = logging.getLogger(__name__)
FRESH_SECONDS: Final = 600.0
"""Age from which the keys are read again."""
UNKNOWN_SECONDS: Final = 60.0
"""Shortest time between two readings for a key that is not known: anybody can name one."""
RETRY_SECONDS: Final = 5.0
"""Time between two attempts while there are no keys at all."""
WAIT_SECONDS: Final = 4.0
"""Longest wait for another thread that reads the keys."""
_TIMEOUT: Final = 3.0
_MAX_BYTES: Final = 1 << 20
_MAX_KEYS: Final = 100
_FAILURES: Final = (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError)


class _Discovered(msgspec.Struct):
    issuer: str
    jwks_uri: str


class _Document(msgspec.Struct):
    keys: list[dict[str, Any]]


class IssuerKeys:
    """The keys of one issuer; thread-safe.

    One thread at a time reads them. Those that have their key go on meanwhile.
    """

    def __init__(self, issuer: Issuer, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._timer = timer
        self._keys: tuple[PyJWK, ...] = ()
        self._read_at = self._tried_at = float("-inf")
        self._lock = threading.Lock()

    def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key with this id for signatures of `algorithm`; None if there is none.

        A token without an id has the issuer's only key for the algorithm. Raises Unavailable while
        the issuer has never answered, and if another thread waits for its answer for long.
        """
        key = self._known(key_id, algorithm)
        if key is None:
            self._read_again(wait=True)
            key = self._known(key_id, algorithm)
        elif self._timer() - self._read_at >= FRESH_SECONDS:
            # A key that is gone by then was valid until now: this token may still have it.
            self._read_again(wait=False)
        if not self._keys:
            raise self._unavailable()
        return key

    def _known(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        fitting = [
            key
            for key in self._keys
            if key.algorithm_name == algorithm and key_id in (None, key.key_id)
        ]
        return fitting[0] if len(fitting) == 1 else None

    def _read_again(self, *, wait: bool) -> None:
        """Read the keys, unless that was tried just now; `wait` for another thread that does.

        Raises Unavailable if that thread takes long.
        """
        if not self._lock.acquire(timeout=WAIT_SECONDS if wait else 0):
            if wait:
                raise self._unavailable()
            return
        try:
            pause = UNKNOWN_SECONDS if self._keys else RETRY_SECONDS
            if self._timer() - self._tried_at >= pause:
                self._try_to_read()
        finally:
            self._lock.release()

    def _try_to_read(self) -> None:
        try:
            self._keys = self._read()
            self._read_at = self._timer()
        except _FAILURES as error:
            _log.warning(
                "identity.keys_not_read", extra={"issuer": self._issuer.url, "error": str(error)}
            )
        finally:
            # The pause begins at the end: those that waited for a slow failure do not repeat it.
            self._tried_at = self._timer()

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"The identity provider {self._issuer.url} is not answering: try again.")

    def _read(self) -> tuple[PyJWK, ...]:
        issuer = self._issuer
        headers = {"Accept": "application/json"}
        if issuer.token_file:
            headers["Authorization"] = f"Bearer {Path(issuer.token_file).read_text().strip()}"
        trust: ssl.SSLContext | bool = True
        if issuer.ca_file:
            trust = ssl.create_default_context(cafile=issuer.ca_file)
        with httpx.Client(timeout=_TIMEOUT, verify=trust, headers=headers) as client:
            url = issuer.jwks_url or _discovered(client, issuer)
            document = msgspec.json.decode(fetch(client, url), type=_Document)
            return tuple(_keys(document, issuer))


def _discovered(client: httpx.Client, issuer: Issuer) -> str:
    """Return the address of the keys in the discovery document; raises ValueError."""
    content = fetch(client, f"{issuer.url.rstrip('/')}/.well-known/openid-configuration")
    found = msgspec.json.decode(content, type=_Discovered)
    # OpenID Connect Discovery, section 4.3: else another issuer's keys would do.
    if found.issuer != issuer.url:
        raise ValueError(f"the discovery document is of issuer {found.issuer!r}")
    if issuer.url.startswith("https://") and not found.jwks_uri.startswith("https://"):
        raise ValueError("the discovery document names keys that come over plain HTTP")
    return found.jwks_uri


def fetch(client: httpx.Client, url: str) -> bytes:
    """Return a document of at most 1 MiB; raises httpx.HTTPError or ValueError."""
    deadline = time.monotonic() + 2 * _TIMEOUT
    with client.stream("GET", url) as answer:
        # A redirect is an error here, too: it could lead anywhere.
        answer.raise_for_status()
        content = bytearray()
        for piece in answer.iter_bytes():
            content += piece
            if len(content) > _MAX_BYTES:
                raise ValueError(f"{url} is too long")
            if time.monotonic() > deadline:
                raise ValueError(f"{url} is too slow")
    return bytes(content)


def _keys(document: _Document, issuer: Issuer) -> list[PyJWK]:
    """Return the keys that sign, each once for every algorithm that it may be used with."""
    keys = []
    for entry in document.keys[:_MAX_KEYS]:
        if entry.get("use", "sig") != "sig":
            continue
        for algorithm in _algorithms(entry):
            if algorithm in issuer.algorithms:
                try:
                    keys.append(PyJWK(entry, algorithm))
                except PyJWTError:
                    # A key of a kind that the library does not know is not for us.
                    continue
    if not keys:
        raise ValueError("the document has no key for the accepted algorithms")
    return keys


_BY_CURVE: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


def _algorithms(entry: dict[str, Any]) -> tuple[str, ...]:
    """Return the algorithms of a key: the one that it names, or those of its kind."""
    kind, named = entry.get("kty"), entry.get("alg")
    if kind == "RSA":
        possible: tuple[str, ...] = _RSA
    elif kind == "EC":
        possible = tuple(filter(None, [_BY_CURVE.get(str(entry.get("crv")))]))
    elif kind == "OKP":
        possible = ("EdDSA",)
    else:
        # Symmetric keys above all: they are no secret once they are published.
        possible = ()
    return possible if named is None else tuple(each for each in possible if each == named)
