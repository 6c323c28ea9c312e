"""Attacks on tokens: each row of RFC 8725's list, and the usual mistakes, against a real server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from lowtide.core.errors import Unauthenticated, Unavailable
from lowtide.core.scopes import Scope
from lowtide.identity import keys as issuer_keys
from lowtide.identity.keys import IssuerKeys
from lowtide.identity.model import Issuer, Issuers
from lowtide.identity.tokens import MAX_TOKEN_BYTES, TokenVerifier
from tests.identity.provider import AUDIENCE, Provider, jwk, providing, rsa_key
from tests.worlds import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Clock:
    """The time since the start of a process, which a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def provider() -> Iterator[Provider]:
    with providing() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(provider: Provider, clock: Clock) -> TokenVerifier:
    issuer = Issuer(provider.url, (AUDIENCE,))
    return TokenVerifier(Issuers((issuer,)), {provider.url: IssuerKeys(issuer, timer=clock)})


def part(value: object) -> str:
    """Return a part of a token."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def public_pem(provider: Provider) -> bytes:
    return provider.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def signed_with_secret(provider: Provider, secret: bytes) -> str:
    """Return a token whose HMAC has the published key as its secret."""
    signed = f"{part({'alg': 'HS256', 'kid': 'one', 'typ': 'JWT'})}.{part(provider.claims())}"
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{part(mac)}"


def unsigned(provider: Provider, algorithm: str) -> str:
    return f"{part({'alg': algorithm, 'kid': 'one'})}.{part(provider.claims())}."


def with_own_key(provider: Provider, **headers: Any) -> str:
    """Return a token of somebody's own key, which it brings or points to."""
    return provider.token(headers={"kid": "own"} | headers, key=OWN)


def changed(token: str, **claims: Any) -> str:
    """Return a token with other claims under the same signature."""
    header, content, signature = token.split(".")
    found = json.loads(base64.urlsafe_b64decode(content + "=="))
    return f"{header}.{part(found | claims)}.{signature}"


def after(seconds: int) -> int:
    """Return the Unix time in so many seconds."""
    return int(time.time()) + seconds


def published(provider: Provider, *keys: dict[str, Any]) -> Provider:
    """Publish further keys."""
    provider.keys.extend(keys)
    return provider


def renamed(provider: Provider) -> Provider:
    """Publish the key for another algorithm."""
    provider.keys[0]["alg"] = "RS512"
    return provider


def damaged_subject(provider: Provider) -> str:
    """Return a signed token whose subject is a list, which the library would not sign."""
    return jwt.PyJWS().encode(
        json.dumps(provider.claims(sub=["ada"])).encode(),
        provider.key,
        algorithm="RS256",
        headers={"kid": "one", "typ": "JWT"},
    )


OWN = rsa_key()
SHORT = rsa_key(1024)
ATTACKS: dict[str, tuple[Callable[[Provider], str], str]] = {
    "no signature": (lambda p: unsigned(p, "none"), "its signature must be one of"),
    "no signature, in capitals": (lambda p: unsigned(p, "NONE"), "its signature must be one of"),
    "algorithm is not a text": (
        lambda p: f"{part({'alg': ['RS256'], 'kid': 'one'})}.{part(p.claims())}.eA",
        "its signature must be one of",
    ),
    "public key as a secret": (
        lambda p: signed_with_secret(p, public_pem(p)),
        "its signature must be one of",
    ),
    "published modulus as a secret": (
        lambda p: signed_with_secret(p, p.keys[0]["n"].encode()),
        "its signature must be one of",
    ),
    "empty signature": (
        lambda p: p.token().rpartition(".")[0] + ".",
        "its signature does not verify",
    ),
    "signature of another token": (
        lambda p: changed(p.token(), sub="root"),
        "its signature does not verify",
    ),
    "signature of another key": (
        lambda p: p.token(key=OWN),
        "its signature does not verify",
    ),
    "ECDSA signature of zeros": (
        lambda p: f"{part({'alg': 'ES256', 'kid': 'one'})}.{part(p.claims())}.{part(b'0' * 64)}",
        "its key is not one of its issuer's",
    ),
    "other algorithm than the key's": (
        lambda p: renamed(p).token(),
        "its key is not one of its issuer's",
    ),
    "key for encryption": (
        lambda p: with_own_key(published(p, jwk(OWN, kid="own", use="enc"))),
        "its key is not one of its issuer's",
    ),
    "symmetric key in the document": (
        lambda p: with_own_key(published(p, {"kty": "oct", "kid": "own", "k": part(b"k" * 32)})),
        "its key is not one of its issuer's",
    ),
    "key of 1024 bits": (
        lambda p: published(p, jwk(SHORT, kid="short")).token(headers={"kid": "short"}, key=SHORT),
        "its key is too short",
    ),
    "foreign issuer": (lambda p: p.token(iss="https://evil.example"), "its issuer is not trusted"),
    "issuer with a slash": (lambda p: p.token(iss=f"{p.url}/"), "its issuer is not trusted here"),
    "issuer in capitals": (lambda p: p.token(iss=p.url.upper()), "its issuer is not trusted here"),
    "no issuer": (lambda p: p.token(iss=None), "its issuer is not trusted here"),
    "issuer is a list": (
        lambda p: f"{part({'alg': 'RS256', 'kid': 'one'})}.{part(p.claims(iss=[p.url]))}.eA",
        "its issuer is not trusted here",
    ),
    "foreign audience": (lambda p: p.token(aud="other"), "it is not meant for this service"),
    "audience that begins alike": (
        lambda p: p.token(aud=f"{AUDIENCE}-dev"),
        "it is not meant for this service",
    ),
    "no audience": (lambda p: p.token(aud=None), "it has no claim aud"),
    "empty audience": (lambda p: p.token(aud=[]), "it has no claim aud"),
    "expired": (lambda p: p.token(exp=after(-60)), "it has expired"),
    "no expiry": (lambda p: p.token(exp=None), "it has no claim exp"),
    "expiry is not a number": (lambda p: p.token(exp="never"), "it is damaged"),
    "not valid yet": (lambda p: p.token(nbf=after(3600)), "it is not valid yet"),
    "issued in the future": (lambda p: p.token(iat=after(3600)), "it is not valid yet"),
    "no subject": (lambda p: p.token(sub=None), "it has no claim sub"),
    "subject is not a text": (
        damaged_subject,
        "it is damaged",
    ),
    "path as key id": (
        lambda p: p.token(headers={"kid": "../../../../dev/null"}),
        "its key is not one of its issuer's",
    ),
    "statement as key id": (
        lambda p: p.token(headers={"kid": "' UNION SELECT 'secret"}),
        "its key is not one of its issuer's",
    ),
    "key id is not a text": (
        lambda p: f"{part({'alg': 'RS256', 'kid': {'a': 1}})}.{part(p.claims())}.eA",
        "its kid is not the id of a key",
    ),
    "huge key id": (
        lambda p: p.token(headers={"kid": "k" * 5000}),
        "its kid is not the id of a key",
    ),
    "brings its key": (
        lambda p: with_own_key(p, jwk=jwk(OWN, kid="own")),
        "its key is not one of its issuer's",
    ),
    "points to its keys": (
        lambda p: with_own_key(p, jku="http://127.0.0.1:9/keys", x5u="http://127.0.0.1:9/x"),
        "its key is not one of its issuer's",
    ),
    "brings a certificate": (
        lambda p: with_own_key(p, x5c=["MIIB"]),
        "its key is not one of its issuer's",
    ),
    "unknown critical extension": (
        lambda p: p.token(headers={"kid": "one", "crit": ["exp"]}),
        "it has extensions that are not supported",
    ),
    "detached content": (
        lambda p: p.token(headers={"kid": "one", "b64": False, "crit": ["b64"]}),
        "",
    ),
    "other kind of token": (
        lambda p: p.token(headers={"kid": "one", "typ": "logout+jwt"}),
        "it is of another kind",
    ),
    "kind is not a text": (
        lambda p: f"{part({'alg': 'RS256', 'kid': 'one', 'typ': ['JWT']})}.{part(p.claims())}.eA",
        "it is of another kind",
    ),
    "huge": (
        lambda p: p.token(padding="x" * MAX_TOKEN_BYTES),
        "it is longer than",
    ),
    "no JSON": (lambda _: "e30.bm90IGpzb24.eA", "it is damaged"),
    "deep JSON": (
        lambda _: f"{part(b'[' * 2500 + b']' * 2500)}.e30.eA",
        "it is damaged",
    ),
    "a list": (lambda p: f"{part(['RS256'])}.{part(p.claims())}.eA", "it is damaged"),
    "no Base64": (lambda _: "!.!.!", "it is damaged"),
    "beyond ASCII": (lambda _: "é.é.é", "it is damaged"),
}


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(provider: Provider, verifier: TokenVerifier, name: str) -> None:
    make, reason = ATTACKS[name]
    with pytest.raises(Unauthenticated) as caught:
        verifier.identity(make(provider))
    assert caught.value.message.startswith(f"The token is refused: {reason}")
    assert caught.value.code == "invalid_token"


def test_valid_token_says_who_it_speaks_for(provider: Provider, verifier: TokenVerifier) -> None:
    identity = verifier.identity(provider.token())
    assert (identity.issuer, identity.tenant, identity.user) == (provider.url, "default", "ada")
    assert identity.scopes == {Scope.FILES_READ, Scope.BATCHES_READ}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda p: p.token(headers={}), id="no key id, as there is one key"),
        pytest.param(lambda p: p.token(headers={"kid": "one", "typ": "at+jwt"}), id="at+jwt"),
        pytest.param(lambda p: p.token(algorithm="PS256"), id="RSA-PSS"),
        pytest.param(lambda p: p.token(aud=["other", AUDIENCE]), id="several audiences"),
        pytest.param(lambda p: p.token(exp=after(-10)), id="clocks differ by 10 s"),
        pytest.param(lambda p: p.token(nbf=after(10)), id="clocks differ the other way"),
    ],
)
def test_usual_token_is_accepted(
    provider: Provider, verifier: TokenVerifier, make: Callable[[Provider], str]
) -> None:
    assert verifier.identity(make(provider)).user == "ada"


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
)
def test_elliptic_curves_are_accepted(
    provider: Provider, verifier: TokenVerifier, key: Any, algorithm: str
) -> None:
    provider.keys.append(jwk(key, kid="curve"))
    token = provider.token(headers={"kid": "curve"}, key=key, algorithm=algorithm)
    assert verifier.identity(token).user == "ada"


def test_longest_token_fits_into_the_header_that_the_server_takes() -> None:
    serving = (Path(__file__).parents[2] / "lowtide/serving.py").read_text()
    assert "\nlimit_request_field_size = 8190\n" in serving
    assert len("Authorization: Bearer \r\n") + MAX_TOKEN_BYTES == 8190


def test_keys_are_read_once(provider: Provider, verifier: TokenVerifier) -> None:
    for _ in range(20):
        verifier.identity(provider.token())
    assert provider.readings == 1


def test_flood_of_unknown_keys_reads_once_a_minute(
    provider: Provider, verifier: TokenVerifier, clock: Clock
) -> None:
    verifier.identity(provider.token())
    for minute in range(1, 4):
        clock.now += issuer_keys.UNKNOWN_SECONDS
        for number in range(50):
            with pytest.raises(Unauthenticated):
                verifier.identity(provider.token(headers={"kid": f"{minute} {number}"}))
            assert verifier.identity(provider.token()).user == "ada"
        assert provider.readings == 1 + minute


def test_rotated_key_is_found_at_once(
    provider: Provider, verifier: TokenVerifier, clock: Clock
) -> None:
    old = provider.token()
    verifier.identity(old)
    provider.key = rsa_key()
    provider.keys.append(jwk(provider.key, kid="two"))
    clock.now += issuer_keys.UNKNOWN_SECONDS
    tokens = [provider.token(headers={"kid": "two"})] * 8
    with ThreadPoolExecutor(8) as threads:
        identities = list(threads.map(verifier.identity, tokens))
    assert [identity.user for identity in identities] == ["ada"] * 8
    assert provider.readings == 2
    assert verifier.identity(old).user == "ada", "the old key is still published"


def test_withdrawn_key_is_refused_after_the_next_reading(
    provider: Provider, verifier: TokenVerifier, clock: Clock
) -> None:
    old = provider.token()
    verifier.identity(old)
    provider.keys = [jwk(rsa_key(), kid="two")]
    clock.now += issuer_keys.FRESH_SECONDS
    verifier.identity(old)
    with pytest.raises(Unauthenticated, match="its key is not one of its issuer's"):
        verifier.identity(old)


@pytest.mark.parametrize("status", [500, 302, 404])
def test_keys_outlive_an_outage(
    provider: Provider, verifier: TokenVerifier, clock: Clock, status: int
) -> None:
    verifier.identity(provider.token())
    provider.status = status
    for _ in range(5):
        clock.now += issuer_keys.FRESH_SECONDS
        assert verifier.identity(provider.token()).user == "ada"
        with pytest.raises(Unauthenticated):
            verifier.identity(provider.token(headers={"kid": "two"}))


@pytest.mark.parametrize(("sent", "is_read"), [("of a pod\n", True), ("of another", False)])
def test_keys_of_a_cluster_come_over_tls_for_a_token(
    tmp_path: Path, sent: str, is_read: bool
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text(sent)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with providing(bearer="of a pod", certificate=context) as provider:
        keys = IssuerKeys(
            Issuer(
                "https://kubernetes.default.svc.cluster.local",
                (AUDIENCE,),
                jwks_url=f"{provider.url}/openid/v1/jwks",
                ca_file=str(tmp_path / "ca.crt"),
                token_file=str(tmp_path / "token"),
            )
        )
        if is_read:
            assert keys.find("one", "RS256") is not None
        else:
            with pytest.raises(Unavailable):
                keys.find("one", "RS256")


def test_provider_that_has_never_answered_is_unavailable(
    provider: Provider, verifier: TokenVerifier, clock: Clock
) -> None:
    provider.status = 503
    for _ in range(10):
        with pytest.raises(Unavailable, match="is not answering"):
            verifier.identity(provider.token())
    assert len(provider.asked) == 1, "one attempt in five seconds"
    provider.status = 200
    clock.now += issuer_keys.RETRY_SECONDS
    assert verifier.identity(provider.token()).user == "ada"


def test_slow_failure_is_not_repeated_by_those_that_waited(
    provider: Provider, verifier: TokenVerifier, clock: Clock
) -> None:
    provider.status = 503
    provider.held.clear()
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(verifier.identity, provider.token()) for _ in range(3)]
        eventually(lambda: len(provider.asked) == 1)
        clock.now += issuer_keys.RETRY_SECONDS
        provider.held.set()
        for each in waiting:
            assert isinstance(each.exception(), Unavailable)
    assert len(provider.asked) == 1


def test_wait_for_another_thread_is_bounded(
    provider: Provider, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "WAIT_SECONDS", 0.05)
    provider.held.clear()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(verifier.identity, provider.token())
        eventually(lambda: len(provider.asked) == 1)
        with pytest.raises(Unavailable, match="is not answering"):
            verifier.identity(provider.token())
        provider.held.set()
        assert first.result().user == "ada"


def test_known_key_does_not_wait_for_a_hanging_provider(
    provider: Provider, verifier: TokenVerifier, clock: Clock
) -> None:
    verifier.identity(provider.token())
    clock.now += issuer_keys.FRESH_SECONDS
    provider.held.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(verifier.identity, provider.token())
        eventually(lambda: len(provider.asked) == 3)
        began = time.monotonic()
        assert verifier.identity(provider.token()).user == "ada"
        assert time.monotonic() - began < 1
        provider.held.set()
        assert waiting.result().user == "ada"


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://other.example"},
        {"jwks_uri": 5},
        {"jwks_uri": "/keys"},
        {"jwks_uri": "http://[::1"},
        {"jwks_uri": "http://localhost:port/keys"},
    ],
)
def test_discovery_document_of_another_issuer_is_not_used(
    provider: Provider, verifier: TokenVerifier, document: dict[str, Any]
) -> None:
    provider.discovery = document
    with pytest.raises(Unavailable):
        verifier.identity(provider.token())


@pytest.mark.parametrize(
    "keys", [[], [{"kty": "oct", "k": "a2V5"}], [{"kty": "RSA", "kid": "one"}]]
)
def test_document_without_a_usable_key_replaces_none(
    provider: Provider, verifier: TokenVerifier, clock: Clock, keys: list[dict[str, Any]]
) -> None:
    verifier.identity(provider.token())
    provider.keys = keys
    clock.now += issuer_keys.FRESH_SECONDS
    for _ in range(2):
        assert verifier.identity(provider.token()).user == "ada"
