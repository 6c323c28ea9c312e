"""The API and the event functions with two object stores: a real one, and one that can misbehave."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from sqlalchemy import text

from lowtide.app import App
from lowtide.buckets.service import Buckets
from lowtide.buckets.store import BucketStore
from lowtide.core.ids import DEFAULT_TENANT, new_id, parse_batch_id
from lowtide.core.pools import Pool
from lowtide.events.model import EventType
from lowtide.objects.store import ObstoreObjects, open_cloud
from lowtide.settings import PREFIX
from lowtide.tenants.keys import hash_key
from tests.conftest import PEPPER, shared_database, world
from tests.http.conftest import (
    FUNCTIONS,
    MASTER_KEY,
    MAX_FILE_BYTES,
    MAX_LINES,
    Api,
    api,
    clients,
    create_app,
)
from tests.objects.conftest import s3_endpoint
from tests.worlds import PATIENCE, done

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flask.testing import FlaskClient

    from lowtide.core.ids import BatchId
    from tests.conftest import Database
    from tests.worlds import World

__all__ = ["api", "clients", "s3_endpoint", "shared_database", "world"]

KEYS = 'access_key_id = "any"\nsecret_access_key = "any"'


@pytest.fixture(scope="session")
def database_name() -> str:
    """The name of this package's database."""
    return "shared_buckets"


@dataclass
class Stub:
    """A small S3 server: `status` replaces its answers, `held` blocks reads after the first one."""

    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    status: int | None = None
    held: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def reset(self) -> None:
        """Forget everything, and hold nothing."""
        if self.held is not None:
            self.held.set()
        self.status = self.held = None
        for contents in (self.objects, self.requests, self.tokens, self.reached):
            contents.clear()


class _Handler(BaseHTTPRequestHandler):
    stub: Stub

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.stub.status is None:
            self.stub.objects[self.path] = body
        self._answer()

    def _answer(self) -> None:
        self.stub.tokens.add(self.headers.get("x-amz-security-token"))
        self.stub.requests.append((self.command, self.path))
        content = self.stub.objects.get(self.path)
        status = self.stub.status or (404 if content is None else 200)
        body = content if status == 200 and content is not None else b""
        size = len(body)
        if status == 200 and "Range" in self.headers:
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            if self.stub.held is not None and int(start):
                self.stub.reached.set()
                self.stub.held.wait(PATIENCE)
            body = body[int(start) : int(end) + 1]
            status = 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 00:00:00 GMT")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(body) - 1}/{size}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="session")
def _stub_server() -> Iterator[Stub]:
    stub = Stub()
    handler = type("Handler", (_Handler,), {"stub": stub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stub.url = f"http://127.0.0.1:{server.server_port}"
        yield stub
        server.shutdown()


@pytest.fixture
def stub(_stub_server: Stub) -> Iterator[Stub]:
    """The server that can misbehave, emptied."""
    _stub_server.reset()
    yield _stub_server
    _stub_server.reset()


@dataclass
class Jobs:
    """Batches of buckets, through the functions; the workers' part is done by the queue alone."""

    api: Api
    world: World
    functions: dict[str, FlaskClient]
    settings: dict[str, str]
    credentials: Path
    store: Any

    def register(
        self, url: str, *, tenant: str = "default", credentials: str = "real", read: bool = True,
        write: bool = True,
    ) -> None:  # fmt: skip
        store = BucketStore(self.world.database.engine("operator"))
        registry = Buckets(store, own_url="", actor="op")
        registry.add(tenant, url, may_read=read, may_write=write, credentials=credentials)

    def put(self, path: str, content: bytes) -> None:
        obstore.put(self.store, path, content)

    def get(self, path: str) -> bytes:
        return bytes(obstore.get(self.store, path).bytes())

    def names(self, prefix: str) -> list[str]:
        return sorted(meta["path"] for page in obstore.list(self.store, prefix) for meta in page)

    def post(self, **body: Any) -> Any:
        return self.api("POST", "/v1/batches", json={"endpoint": "/v1/embeddings"} | body)

    def create(self, **body: Any) -> BatchId:
        response = self.post(**body)
        assert response.status_code == 200, response.text
        batch = parse_batch_id(response.json["id"])
        assert batch is not None
        return batch

    def batch(self, batch: BatchId) -> Any:
        return self.api("GET", f"/v1/batches/batch_{batch.hex}").json

    def deliver(self, type_: EventType, batch: BatchId) -> int:
        """Deliver an event to its function; return the status of the answer."""
        function = "split" if type_ is EventType.BATCH_CREATED else "finalize"
        headers = {
            "ce-specversion": "1.0", "ce-type": type_.value, "ce-source": "/s", "ce-id": str(new_id()),
        }  # fmt: skip
        body = {"batch_id": f"batch_{batch.hex}"}
        return int(self.functions[function].post("/", json=body, headers=headers).status_code)

    def split(self, batch: BatchId) -> int:
        return self.deliver(EventType.BATCH_CREATED, batch)

    def run(self, batch: BatchId, *, failing: int = 0) -> None:
        """Settle all queued requests of a batch, the last `failing` ones as failed; close it."""
        lease = self.world.queue.open_lease(Pool.SPOT, "w")
        claims = sorted(self.world.queue.claim(lease, Pool.SPOT, 100), key=lambda claim: claim.line)
        results = [
            done(claim, succeeded=number < len(claims) - failing)
            for number, claim in enumerate(claims)
        ]
        self.world.queue.settle(lease, results, [])
        assert self.deliver(EventType.BATCH_DRAINED, batch) == 204

    def export(self, batch: BatchId) -> None:
        """Let the scheduler announce what is due; deliver the event if it is announced."""
        self.world.sweep(stalled_after=30)
        announced = self.world.events(batch)[EventType.EXPORT_REQUESTED.value]
        self.world.run("DELETE FROM outbox WHERE type = :type", type=EventType.EXPORT_REQUESTED)
        assert announced == 1
        assert self.deliver(EventType.EXPORT_REQUESTED, batch) == 204

    def sweep_objects(self) -> None:
        """Delete all orphans, as a tick does when they are due."""
        self.world.run("UPDATE orphan_objects SET due_at = now()")
        keys = self.world.ticks.orphans(200).keys
        ObstoreObjects(f"file://{self.api.objects}").delete(keys)
        self.world.ticks.forget_orphans(keys)

    @contextmanager
    def acting_as(self, key: str) -> Iterator[None]:
        own, self.api.key = self.api.key, key
        try:
            yield
        finally:
            self.api.key = own

    def tenant(self, name: str, key: str) -> None:
        """Create a tenant with an API key."""
        tenant = self.world.tenant(name)
        with self.world.database.engine("owner").begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO api_keys (hash, tenant_id, name, prefix) VALUES (:hash, :tenant, 'k', 'lt')"
                ),
                {"hash": hash_key(key, PEPPER), "tenant": tenant},
            )


@pytest.fixture(scope="session")
def _functions(
    shared_database: Database,
    clients: tuple[dict[str, FlaskClient], Path],
    s3_endpoint: str,
    _stub_server: Stub,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, FlaskClient], dict[str, str], Path]]:
    path = tmp_path_factory.mktemp("credentials") / "buckets.toml"
    path.write_text(
        f'[real]\nendpoint = "{s3_endpoint}"\n{KEYS}\n'
        f'[stub]\nendpoint = "{_stub_server.url}"\n{KEYS}\n'
    )
    settings = {
        "DATABASE_URL": shared_database.url("worker"),
        "OBJECT_STORE_URL": f"file://{clients[1]}",
        "MAX_FILE_BYTES": str(MAX_FILE_BYTES),
        "MAX_BATCH_LINES": str(MAX_LINES),
        "BUCKET_CREDENTIALS": str(path),
        "MASTER_KEY": MASTER_KEY,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(PREFIX + name, value)
        by_function = {
            name: create_app(name, str(FUNCTIONS / name / "main.py"), "cloudevent").test_client()
            for name in ("split", "finalize")
        }
    yield by_function, settings, path
    for client in by_function.values():
        App.of_server(client.application).close(10)


@pytest.fixture
def jobs(
    api: Api,
    world: World,
    _functions: tuple[dict[str, FlaskClient], dict[str, str], Path],
    s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Jobs:
    """Batches of buckets, with an empty database; `in/` and `out/` of a bucket are registered."""
    functions, settings, path = _functions
    config = {"endpoint": s3_endpoint, "access_key_id": "any", "secret_access_key": "any"}
    store = open_cloud("s3://bucket", is_plaintext=True, config=config | {"region": "us-east-1"})
    # Settings of the installation's own store, which must not reach a named set of credentials.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "own")
    for page in obstore.list(store):
        obstore.delete(store, [meta["path"] for meta in page])
    made = Jobs(api, world, functions, settings, path, store)
    made.register("s3://bucket/in/", write=False)
    made.register("s3://bucket/out/", read=False)
    made.register("s3://stub-bucket/", credentials="stub")
    assert DEFAULT_TENANT in {row.tenant_id for row in world.rows("SELECT tenant_id FROM buckets")}
    return made
