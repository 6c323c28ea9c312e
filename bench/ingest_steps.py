"""One step of ingest in a process of its own, started by other benchmarks.

    python -m bench.ingest_steps upload FILE
    python -m bench.ingest_steps create FILE_ID
    python -m bench.ingest_steps submit FILE
    python -m bench.ingest_steps queue BATCH_ID
    python -m bench.ingest_steps validate FILE
    python -m bench.ingest_steps segments BATCH_ID
    python -m bench.ingest_steps split BATCH_ID OWNER_URL
    python -m bench.ingest_steps drain BATCH_ID
    python -m bench.ingest_steps enlarge BATCH_ID SEGMENTS
    python -m bench.ingest_steps finalize BATCH_ID

Prints its figures as one JSON line.
"""

from __future__ import annotations

import io
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from bench.stage import peak_megabytes
from lowtide.app import App
from lowtide.batches.service import BatchRequest
from lowtide.core.ids import (
    DEFAULT_TENANT,
    BatchId,
    format_batch_id,
    format_file_id,
    parse_batch_id,
)
from lowtide.database.connections import connect
from lowtide.files.lines import LineReader, read_lines
from lowtide.services import line_limits
from lowtide.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

APP = App(read_settings())
BODY = '{"id":"chatcmpl-0","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":40,"total_tokens":60}}'
BODY_BYTES = 300
# Finishes a batch without running it: every request has a result with status 200.
ANSWER = """
INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
  output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
  request_id, body)
SELECT batch_id, tenant_id, batch_id, now(), now(), line, 20, 40, 200, 1, 0, true, false, false,
  'spot', 'req_' || md5(line::text), :body FROM requests WHERE batch_id = :batch
"""
DRAIN = """
UPDATE batches SET status = 'finalizing', finalizing_at = now(), drained_at = now()
WHERE id = :batch
"""
# Repeats the requests of a drained batch, a segment for each time.
ENLARGE = (
    """INSERT INTO requests (batch_id, tenant_id, line, start, length, checksum, custom_id)
       SELECT batch_id, tenant_id, line + :offset, start, length, checksum, custom_id || '-' || cast(:number AS text)
       FROM requests WHERE batch_id = :batch AND line <= :lines""",
    """INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
         output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
         request_id, body)
       SELECT batch_id, tenant_id, lease_id, started_at, finished_at, line + :offset, input_tokens,
         output_tokens, status_code, attempts, interruptions, succeeded, escalated, dead_lettered, pool,
         request_id, body
       FROM results WHERE batch_id = :batch AND line <= :lines""",
    """INSERT INTO segments (batch_id, number, tenant_id, first_line, lines, index_start, index_end,
         split_at)
       SELECT id, :number, tenant_id, :offset + 1, :lines, 0, 0, now() FROM batches WHERE id = :batch
       ON CONFLICT DO NOTHING""",
)
# COPY takes no parameters.
RESULTS = """
COPY (SELECT r.line, r.custom_id, f.status_code, f.request_id, f.body
  FROM requests r JOIN results f USING (batch_id, line) WHERE r.batch_id = '{batch}' ORDER BY r.line)
TO STDOUT
"""
TABLES = ("requests", "queued_runs")


@contextmanager
def measured(into: dict[str, Any]) -> Iterator[None]:
    """Add the block's wall-clock and CPU seconds, and this process's peak memory."""
    began, used = time.perf_counter(), time.process_time()
    yield
    into["seconds"] = time.perf_counter() - began
    into["cpu"] = time.process_time() - used
    into["megabytes"] = peak_megabytes()


def validate(path: str) -> dict[str, Any]:
    """Read a file through the LineReader, as an upload does."""
    found: dict[str, Any] = {}
    reader = LineReader(line_limits(APP.settings))
    with Path(path).open("rb") as file, measured(found):
        for _ in read_lines(iter(lambda: file.read(1 << 20), b""), reader):
            pass
    assert not reader.problems
    return found


def upload(path: str) -> dict[str, Any]:
    """Store a file."""
    found: dict[str, Any] = {}
    with (
        Path(path).open("rb") as file,
        measured(found),
        APP.services.files.upload(DEFAULT_TENANT) as stream,
    ):
        for block in iter(lambda: file.read(1 << 20), b""):
            stream.write(block)
        stored = stream.finish("bench.jsonl", "batch")
    assert stored.segments is not None, stored.status_details
    return found | {"file": format_file_id(stored.id)}


def create(file: str) -> dict[str, Any]:
    """Create a batch for an uploaded file."""
    made = APP.services.batches.create(DEFAULT_TENANT, BatchRequest(file, "bench"))
    return {"batch": format_batch_id(made.id)}


def submit(path: str) -> dict[str, Any]:
    """Store a file and create a batch for it."""
    return create(upload(path)["file"])


def queue(name: str) -> dict[str, Any]:
    """Split a new batch."""
    batch = _batch(name)
    _split(batch)
    return {"batch": str(batch)}


def segments(name: str) -> dict[str, Any]:
    """Split every segment of a new batch, one after the other."""
    found: dict[str, Any] = {}
    with measured(found):
        figures = _split(_batch(name))
    return found | figures


def split(name: str, owner_url: str) -> dict[str, Any]:
    """Split a new batch, then copy the same rows into empty tables of the same shape."""
    batch = _batch(name)
    found: dict[str, Any] = {}
    with measured(found):
        _split(batch)
    rows = {table: _rows(table, batch) for table in TABLES}
    found["lines"] = rows["requests"].count(b"\n")
    owner = connect(owner_url)
    with owner.begin() as connection:
        for table in TABLES:
            connection.execute(text(f"DROP TABLE IF EXISTS bare_{table}"))
            connection.execute(text(f"CREATE TABLE bare_{table} (LIKE {table} INCLUDING ALL)"))
    for figure, tables in (("copy", TABLES), ("copy_requests", TABLES[:1])):
        began = time.perf_counter()
        with owner.begin() as connection:
            cursor = _cursor(connection)
            for table in tables:
                cursor.execute(f"COPY bare_{table} FROM STDIN", stream=_blocks(rows[table]))
        found[figure] = time.perf_counter() - began
        with owner.begin() as connection:
            connection.execute(text("TRUNCATE bare_requests, bare_queued_runs"))
    return found


def drain(name: str) -> dict[str, Any]:
    """Split a new batch, and insert a result for each request."""
    batch = _batch(name)
    _split(batch)
    body = (BODY % "").encode()
    parameters = {"batch": batch, "body": BODY % ("x" * (BODY_BYTES - len(body)))}
    with APP.database.begin() as connection:
        connection.execute(text(ANSWER), parameters)
        connection.execute(text("DELETE FROM queued_runs WHERE batch_id = :batch"), parameters)
        connection.execute(text(DRAIN), parameters)
    return {"batch": name}


def enlarge(name: str, segments: str) -> dict[str, Any]:
    """Make a drained batch one of several segments, each as large as it was."""
    batch = _batch(name)
    with APP.database.begin() as connection:
        count = text("SELECT total FROM batches WHERE id = :batch")
        lines: int = connection.execute(count, {"batch": batch}).scalar_one()
        for number in range(1, int(segments) + 1):
            for statement in ENLARGE if number > 1 else ENLARGE[2:]:
                parameters = {"batch": batch, "lines": lines, "number": number}
                connection.execute(text(statement), parameters | {"offset": (number - 1) * lines})
        total = text("UPDATE batches SET total = :total WHERE id = :batch")
        connection.execute(total, {"batch": batch, "total": lines * int(segments)})
    return {"batch": name}


def finalize(name: str) -> dict[str, Any]:
    """Finalize a drained batch segment by segment, then copy the same columns out."""
    batch, finalizer = _batch(name), APP.finalizer
    found: dict[str, Any] = {}
    assert _completed(batch) == 0
    with measured(found):
        while not _completed(batch):
            finalizer.finalize(batch)
    found["lines"] = _completed(batch)
    out, began = io.BytesIO(), time.perf_counter()
    with APP.database.begin() as connection:
        _cursor(connection).execute(RESULTS.format(batch=batch), stream=out)
    found["copy"] = time.perf_counter() - began
    assert out.getvalue().count(b"\n") == found["lines"]
    return found


def _split(batch: BatchId) -> dict[str, float]:
    """Split all segments of a batch; return their number, and the seconds of the first."""
    began, splitter = time.perf_counter(), APP.splitter
    splitter.split(batch)
    first = time.perf_counter() - began
    with APP.database.begin() as connection:
        query = text("SELECT number FROM segments WHERE batch_id = :batch AND split_at IS NULL")
        waiting = sorted(connection.execute(query, {"batch": batch}).scalars())
    for number in waiting:
        splitter.split_segment(batch, number)
    return {"first": first, "segments": 1 + len(waiting)}


def _cursor(connection: Connection) -> Any:
    """Return pg8000's cursor, whose `execute` reads and writes streams."""
    return connection.connection.cursor()


def _batch(name: str) -> BatchId:
    batch = parse_batch_id(name)
    assert batch is not None
    return batch


def _completed(batch: BatchId) -> int:
    with APP.database.begin() as connection:
        query = text("SELECT completed FROM batches WHERE id = :batch")
        return int(connection.execute(query, {"batch": batch}).scalar_one())


def _rows(table: str, batch: BatchId) -> bytes:
    out = io.BytesIO()
    with APP.database.begin() as connection:
        query = f"COPY (SELECT * FROM {table} WHERE batch_id = '{batch}') TO STDOUT"  # noqa: S608
        _cursor(connection).execute(query, stream=out)
    return out.getvalue()


def _blocks(rows: bytes) -> Iterator[bytes]:
    return (rows[start : start + 65536] for start in range(0, len(rows), 65536))


if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    steps: dict[str, Callable[..., dict[str, Any]]] = {
        "upload": upload,
        "create": create,
        "submit": submit,
        "queue": queue,
        "validate": validate,
        "segments": segments,
        "split": split,
        "drain": drain,
        "enlarge": enlarge,
        "finalize": finalize,
    }
    print(json.dumps(steps[step](*arguments)))
