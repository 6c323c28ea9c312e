"""A cell in this process: its functions on a real database and a bucket, step by step."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import obstore
from pydantic import SecretStr
from sqlalchemy import event, text

from lowtide.app import App
from lowtide.batches.api import batch_object
from lowtide.batches.model import FINAL_STATUSES
from lowtide.batches.service import BatchRequest
from lowtide.core.errors import NotFound
from lowtide.core.ids import DEFAULT_TENANT, BatchId, format_file_id, new_id
from lowtide.core.pools import Pool
from lowtide.engines.outcomes import Usage
from lowtide.queue.claims import Finished
from lowtide.queue.store import QueueStore
from lowtide.settings import Settings
from tests import oracle
from tests.conftest import PEPPER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine

    from lowtide.batches.model import Batch
    from lowtide.cells.evacuation import Evacuated, Evacuation
    from lowtide.core.ids import FileId, TenantId
    from tests.conftest import Database

ENDPOINT = "/v1/chat/completions"


def input_of(lines: int, model: str = "m") -> bytes:
    """Return an input file whose requests are numbered from 1."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": ENDPOINT,
                "body": {"model": model, "messages": [{"role": "user", "content": str(number)}]},
            }
        ).encode()
        + b"\n"
        for number in range(1, lines + 1)
    )


def answers(request: oracle.InputLine, body: Any) -> None:
    """Assert that a body answers its request."""
    assert body["echo"] == request.body["messages"][0]["content"]


@dataclass
class Host:
    """One cell; `number` None is an installation without a number."""

    number: int | None
    database: Database
    bucket: str
    settings: dict[str, Any] = field(default_factory=dict)
    apps: dict[str, App] = field(default_factory=dict)
    sources: dict[BatchId, bytes] = field(default_factory=dict)

    def app(self, role: str) -> App:
        if role not in self.apps:
            settings = Settings(
                database_url=SecretStr(self.database.url(role)),
                object_store_url=self.bucket,
                api_key_pepper=SecretStr(PEPPER),
                cell=self.number,
                **self.settings,
            )
            self.apps[role] = App(settings)
        return self.apps[role]

    def close(self) -> None:
        for app in self.apps.values():
            app.close(5)
        self.apps.clear()

    # A client

    def create(
        self,
        lines: int = 3,
        *,
        tenant: TenantId = DEFAULT_TENANT,
        file: FileId | None = None,
        source: bytes = b"",
        **parameters: Any,
    ) -> BatchId:
        services = self.app("api").services
        source = source or input_of(lines)
        if file is None:
            with services.files.upload(tenant) as upload:
                upload.write(source)
                file = upload.finish("in.jsonl", "batch").id
        request = BatchRequest(format_file_id(file), user="u", **parameters)
        batch = services.batches.create(tenant, request).id
        self.sources[batch] = source
        return batch

    def get(self, batch: BatchId, tenant: TenantId = DEFAULT_TENANT) -> Batch | None:
        try:
            return self.app("api").services.batches.get(tenant, batch)
        except NotFound:
            return None

    def cancel(self, batch: BatchId) -> Batch:
        return self.app("api").services.batches.cancel(DEFAULT_TENANT, batch)

    def content(self, file: FileId | None) -> bytes:
        if file is None:
            return b""
        files = self.app("api").services.files
        return b"".join(files.content(DEFAULT_TENANT, file, actor="test"))

    # Its functions

    def split(self, batch: BatchId) -> None:
        self.app("worker").splitter.split(batch)

    def work(self, most: int = 1000, *, succeeded: bool = True) -> int:
        """Answer requests that wait, from the bytes of their inputs; return how many.

        Those that do not succeed become dead letters.
        """
        app = self.app("worker")
        queue = QueueStore(app.database, new_id=new_id, lease_duration=30.0)
        lease = queue.open_lease(Pool.SPOT, "test")
        claims = queue.claim(lease, Pool.SPOT, most)
        finished = []
        for claim in claims:
            (line,) = app.objects.read_ranges(claim.input_key, [(claim.start, claim.length)])
            content = json.loads(line)["body"]["messages"][0]["content"]
            usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
            body = json.dumps({"echo": content, "usage": usage}).encode()
            finished.append(
                Finished(
                    claim.batch, claim.line, succeeded=succeeded, attempts=1, usage=Usage(3, 5),
                    status_code=200 if succeeded else 400, request_id="r", body=body,
                    dead_letter=not succeeded,
                )
            )  # fmt: skip
        if finished:
            queue.settle(lease, finished, [])
        queue.close_lease(lease)
        return len(finished)

    def finalize(self, batch: BatchId) -> None:
        self.app("worker").finalizer.finalize(batch)

    def check(self) -> None:
        """Run the part of a process's first tick that compares the ledger."""
        self.app("worker")._ledger_check()()

    def unfinished(self) -> list[BatchId]:
        sql = text(
            "SELECT id FROM batches WHERE status NOT IN ('completed', 'failed', 'expired', 'cancelled')"
        )
        with self.app("worker").database.begin() as connection:
            return [BatchId(id_) for id_ in connection.execute(sql).scalars()]

    def finish(self) -> None:
        """Run all that the functions do for the batches that are here."""
        for batch in self.unfinished():
            self.split(batch)
        while self.work():
            pass
        for batch in self.unfinished():
            self.finalize(batch)

    def value(self, sql: str, **parameters: Any) -> Any:
        with self.app("worker").database.begin() as connection:
            return connection.execute(text(sql), parameters).scalar_one()

    # Evacuation

    def evacuation(self, source: Host, bucket: str | None = None, **options: Any) -> Evacuation:
        """Return the evacuation of another cell into this one."""
        assert source.number is not None
        may_have = options.pop("may_have", lambda _: True)
        made = self.app("operator").evacuation(
            source.number, f"cell-{source.number}", bucket or source.bucket,
            actor="operator (cli)", may_have=may_have,
        )  # fmt: skip
        made._at_once = options.pop("at_once", 1)
        return made

    def evacuate(self, source: Host, bucket: str | None = None, **options: Any) -> list[Evacuated]:
        dry_run = options.pop("dry_run", False)
        evacuation = self.evacuation(source, bucket, **options)
        evacuation.check()
        return evacuation.run(evacuation.recorded(), dry_run=dry_run)


def ended_in(hosts: Sequence[Host], batch: BatchId) -> list[Host]:
    """Return the cells in which a batch has ended."""
    return [
        host
        for host in hosts
        if (found := host.get(batch)) is not None and found.status in FINAL_STATUSES
    ]


def check_ends_once(
    hosts: Sequence[Host], batch: BatchId, source: bytes, status: str = "completed"
) -> Host:
    """Assert that a batch ended in one cell, and each of its requests once; return the cell.

    No other cell may still have the batch, or a request, result or event of it.
    """
    found = ended_in(hosts, batch)
    assert len(found) == 1, f"ended in {[host.number for host in found]}"
    (host,) = found
    record = host.get(batch)
    assert record is not None
    built = msgspec.to_builtins(batch_object(record))
    oracle.check_progress(built)
    oracle.check(
        built, source, host.content(record.output_file), host.content(record.error_file),
        answers=answers, status=status,
    )  # fmt: skip
    completed = "dev.lowtide.batch.completed"
    for other in hosts:
        events = other.value(
            "SELECT count(*) FROM outbox WHERE type = :type AND data->>'batch_id' = :id",
            type=completed, id=f"batch_{batch.hex}",
        )  # fmt: skip
        assert events == (other is host), f"{events} in {other.number}"
        if other is not host:
            assert other.get(batch) is None, f"still in {other.number}"
            for table in ("requests", "results", "queued_runs", "claimed_runs", "segments"):
                rows = other.value(
                    f"SELECT count(*) FROM {table} WHERE batch_id = :batch",  # noqa: S608
                    batch=batch,
                )
                assert rows == 0, f"{rows} {table} in {other.number}"
    return host


class Killed(BaseException):
    """The end of a process."""


class Steps:
    """The calls of a process to its bucket and its database, in order.

    `action` runs once, just before call number `at`; raising Killed, it ends the process: every later
    call raises, too.
    """

    _CALLS = ("put", "get", "get_ranges", "head", "list", "delete", "open_writer")

    def __init__(self, at: int = -1, action: Callable[[], object] = lambda: None) -> None:
        self.count = 0
        self.names: list[str] = []
        self._at = at
        self._action = action
        self._is_dead = False
        self._is_acting = False

    @contextmanager
    def of(self, engine: Engine) -> Iterator[None]:
        """Count the block's calls, those with `engine` among the statements."""
        originals = {name: getattr(obstore, name) for name in self._CALLS}

        def counted(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self._step(name)
                return originals[name](*arguments, **options)

            return call

        def on_execute(_: Any, __: Any, statement: str, *___: Any) -> None:
            self._step(" ".join(statement.split()[:3]))

        def on_commit(_: Any) -> None:
            self._step("COMMIT")

        for name in self._CALLS:
            setattr(obstore, name, counted(name))
        event.listen(engine, "before_cursor_execute", on_execute)
        event.listen(engine, "commit", on_commit)
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(obstore, name, original)
            event.remove(engine, "before_cursor_execute", on_execute)
            event.remove(engine, "commit", on_commit)

    def _step(self, name: str) -> None:
        if self._is_acting:
            return
        if self._is_dead:
            raise Killed
        if self.count == self._at:
            self._is_acting = True
            try:
                self._action()
            except Killed:
                self._is_dead = True
                raise
            finally:
                self._is_acting = False
        self.names.append(name)
        self.count += 1


def kill() -> None:
    """End the process."""
    raise Killed
