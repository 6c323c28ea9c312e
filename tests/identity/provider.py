"""An identity provider's HTTP side, with keys of the test's own."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

AUDIENCE = "lowtide"
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a new RSA key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


KEY = rsa_key()


def jwk(key: Private, **members: Any) -> dict[str, Any]:
    """Return the public half of a key."""
    if isinstance(key, rsa.RSAPrivateKey):
        public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        public = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return public | {"use": "sig"} | members


@dataclass
class Provider:
    """A server of a discovery document and of keys; `status` other than 200 is an outage.

    With a `bearer`, as Kubernetes' API server, it answers nobody without this token.
    """

    url: str = ""
    bearer: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=lambda: KEY)
    keys: list[dict[str, Any]] = field(default_factory=list)
    discovery: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    asked: list[str] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Publish the key."""
        self.keys = [jwk(self.key, kid="one")]
        self.held.set()

    def answer(self, path: str) -> object:
        """Return the document at a path."""
        self.asked.append(path)
        self.held.wait(30)
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.discovery
        return {"keys": self.keys}

    @property
    def readings(self) -> int:
        """The number of times that the keys were read."""
        return self.asked.count("/keys")

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a valid token with these changes; None drops a claim."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada",
            "iat": now,
            "exp": now + 300,
            "tenant": "default",
            "scope": "files:read batches:read",
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        *,
        headers: dict[str, Any] | None = None,
        key: Any = None,
        algorithm: str = "RS256",
        **changes: Any,
    ) -> str:
        """Return a signed token."""
        return jwt.encode(
            self.claims(**changes),
            self.key if key is None else key,
            algorithm=algorithm,
            headers={"kid": "one"} if headers is None else headers,
        )


@contextmanager
def providing(*, bearer: str = "", certificate: ssl.SSLContext | None = None) -> Iterator[Provider]:
    """Run a provider, over TLS with a certificate."""
    provider = Provider(bearer=bearer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(provider.answer(self.path)).encode()
            known = self.headers["Authorization"] == f"Bearer {provider.bearer}"
            self.send_response(provider.status if known or not provider.bearer else 401)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        server.socket = certificate.wrap_socket(server.socket, server_side=True)
    scheme = "http" if certificate is None else "https"
    provider.url = f"{scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        provider.held.set()
        server.shutdown()
        thread.join()
        server.server_close()
