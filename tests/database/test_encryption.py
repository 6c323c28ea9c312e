"""TLS to PostgreSQL: a proxy in front of the embedded server terminates TLS, like a pooler."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError

from lowtide.core.errors import Unavailable
from lowtide.database.connections import begin, connect
from lowtide.database.encryption import encryption, tls_problem
from lowtide.database.prepared import hot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Database

SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
HOST = "127.0.0.1"


class Proxy:
    """Terminate TLS for a server without it, and count the encrypted connections."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._behind, self._context = port, context
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.encrypted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(client,), daemon=True).start()

    def _take(self, client: socket.socket) -> None:
        with client:
            if client.recv(8, socket.MSG_WAITALL) != SSL_REQUEST:
                return
            client.sendall(b"S")
            try:
                encrypted = self._context.wrap_socket(client, server_side=True)
            except OSError:
                return
            with encrypted, socket.create_connection((HOST, self._behind)) as server:
                self.encrypted += 1
                relay(encrypted, server)


def relay(encrypted: ssl.SSLSocket, server: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(encrypted, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, encrypted)
        while True:
            for key, _ in selector.select():
                source = encrypted if key.fileobj is encrypted else server
                data = source.recv(65536)
                while encrypted.pending():
                    data += encrypted.recv(65536)
                if not data:
                    return
                key.data.sendall(data)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def proxy(database: Database, authority: trustme.CA) -> Iterator[Proxy]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("db.example", HOST).configure_cert(context)
    proxy = Proxy(database.server.port, context)
    yield proxy
    proxy.close()


@pytest.fixture
def roots(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "roots.pem"))
    return str(tmp_path / "roots.pem")


def proxy_url(database: Database, proxy: Proxy, query: dict[str, str], host: str = HOST) -> str:
    url = make_url(database.url("worker")).set(host=host, port=proxy.port, query=query)
    return url.render_as_string(hide_password=False)


@pytest.mark.parametrize("mode", [None, "prefer", "require", "verify-ca", "verify-full"])
def test_connection_is_encrypted(
    database: Database, proxy: Proxy, roots: str, mode: str | None
) -> None:
    query = {} if mode is None else {"sslmode": mode}
    if mode is not None and mode.startswith("verify"):
        query["sslrootcert"] = roots
    engine = connect(proxy_url(database, proxy, query), pool_size=1)
    for _ in range(2):
        with begin(engine) as connection:
            assert connection.execute(hot("SELECT cast(:n AS text)"), {"n": "x" * 99_999}).scalar()
            connection.execute(text("SELECT 1"))
    engine.dispose()
    assert proxy.encrypted == 1


@pytest.mark.parametrize(
    ("query", "host"),
    [
        pytest.param({"sslmode": "verify-full"}, HOST, id="an untrusted authority"),
        pytest.param({"sslrootcert": "system"}, HOST, id="the system's authorities"),
        pytest.param(
            {"sslmode": "verify-full", "sslrootcert": ""}, "localhost", id="another host name"
        ),
        pytest.param({"sslmode": "require", "sslrootcert": "other"}, HOST, id="another authority"),
    ],
)
def test_untrusted_server_is_refused(
    database: Database,
    proxy: Proxy,
    roots: str,
    tmp_path: Path,
    query: dict[str, str],
    host: str,
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    files = {"": roots, "other": str(other), "system": "system"}
    if "sslrootcert" in query:
        query = {**query, "sslrootcert": files[query["sslrootcert"]]}
    engine = connect(proxy_url(database, proxy, query, host), pool_size=1, timeout=5)
    with pytest.raises(Unavailable), begin(engine):
        pass
    assert proxy.encrypted == 0


def test_sslmode_require_refuses_server_without_tls(database: Database) -> None:
    plain = connect(f"{database.url('worker')}?sslmode=prefer", pool_size=1)
    with begin(plain) as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    plain.dispose()
    strict = connect(f"{database.url('worker')}?sslmode=require", pool_size=1)
    with pytest.raises((InterfaceError, Unavailable)), begin(strict):
        pass


def test_sslmode_disable_sends_no_ssl_request(database: Database, proxy: Proxy) -> None:
    engine = connect(proxy_url(database, proxy, {"sslmode": "disable"}), pool_size=1, timeout=5)
    with pytest.raises(Unavailable), begin(engine):
        pass
    assert proxy.encrypted == 0


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sslmode=sometimes", "invalid sslmode=sometimes in the database URL: use one of disable"),
        ("sslmode=verify-full&sslrootcert=/no/such.pem", "sslrootcert=/no/such.pem"),
        ("sslmode=require&sslrootcert=system", "use sslmode=verify-full"),
        ("sslmode=verify-ca", "use sslmode=verify-full"),
        ("sslmode=prefer&sslrootcert=/some/ca.pem", "sslmode=prefer ignores sslrootcert"),
        ("sslrootcert=/no/such.pem", "sslrootcert=/no/such.pem"),
        ("ssl=true", "unknown parameter in the database URL: ssl"),
    ],
)
def test_invalid_tls_parameter_is_refused(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encryption(make_url(f"postgresql://user:secret@db/lowtide?{query}"))


REMOTE = "db.example"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of other machines, which resolve to this one."""
    resolve = socket.getaddrinfo

    def resolved(host: Any, *args: Any, **options: Any) -> Any:
        known = {REMOTE: HOST, "other.example": HOST}
        return resolve(known.get(host, host), *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.mark.usefixtures("names")
def test_another_machine_with_a_valid_certificate_is_accepted(
    database: Database, proxy: Proxy, roots: str
) -> None:
    engine = connect(proxy_url(database, proxy, {"sslrootcert": roots}, REMOTE), pool_size=1)
    with begin(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()
    assert proxy.encrypted == 1


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("host", "trusts", "advice"),
    [
        pytest.param(REMOTE, False, "sslrootcert=/path/ca.pem", id="an untrusted authority"),
        pytest.param("other.example", True, "'other.example'", id="another host name"),
    ],
)
def test_another_machine_is_verified_by_default(
    database: Database, proxy: Proxy, roots: str, host: str, advice: str, *, trusts: bool
) -> None:
    query = {"sslrootcert": roots} if trusts else {}
    engine = connect(proxy_url(database, proxy, query, host), pool_size=1, timeout=5)
    with pytest.raises(Unavailable) as caught, begin(engine):
        pass
    assert advice in caught.value.for_log
    assert "sslmode=verify-ca" in caught.value.for_log
    assert proxy.encrypted == 0


@pytest.mark.usefixtures("names")
def test_another_machine_without_tls_is_refused_by_default(database: Database) -> None:
    plain = make_url(database.url("worker")).set(host=REMOTE)
    refused = connect(plain.render_as_string(hide_password=False), pool_size=1)
    with pytest.raises(Unavailable) as caught, begin(refused):
        pass
    assert "?sslmode=disable" in caught.value.for_log
    assert "?sslmode=disable" in tls_problem(caught.value)
    allowed = plain.update_query_dict({"sslmode": "disable"})
    engine = connect(allowed.render_as_string(hide_password=False), pool_size=1)
    with begin(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize(
    ("host", "is_verified"),
    [
        ("localhost", False), ("127.0.0.1", False), ("127.1.2.3", False), ("[::1]", False), ("", False),
        ("db", True), ("10.0.0.7", True), ("[2001:db8::1]", True), ("localhost.example", True),
        ("192.0.2.1", True),
    ],
)  # fmt: skip
def test_only_this_machine_may_be_unverified_by_default(host: str, *, is_verified: bool) -> None:
    _, context = encryption(make_url(f"postgresql://user:secret@{host}/lowtide"))
    if not is_verified:
        assert context is None
        return
    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
