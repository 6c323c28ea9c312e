"""Resident memory of every function at the largest requests and answers that are allowed.

Each function runs as many requests at once as its manifest allows.
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
import yaml

from lowtide.core.ids import BatchId, format_batch_id, format_file_id, format_request_id
from lowtide.core.pools import Pool
from lowtide.dead_letters.model import LetterId
from lowtide.files.lines import Limits
from lowtide.objects.store import ObstoreObjects
from lowtide.settings import Settings
from lowtide.uploads.model import MAX_PART_BYTES
from portal.downloads import MOST
from tests.browsing import launched, new_visit
from tests.conftest import API_KEY
from tests.dead_letters.letters import batch_of_lines, dead
from tests.e2e.waiting import until
from tests.faults.large import KINDS, answering
from tests.faults.memory import environment_of, memory_limit, peak_memory, worker_bound
from tests.faults.servers import serving
from tests.http.forms import CONTENT_TYPE, form, part
from tests.portal.conftest import PORTAL_PASSWORD, VIEWER_PASSWORD, api, start_portal
from tests.worlds import done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Database
    from tests.faults.servers import Server
    from tests.portal.conftest import Portal, StubApi
    from tests.worlds import World

__all__ = ["api", "start_portal"]

pytestmark = pytest.mark.timeout(900)
BASE = Path(__file__).parents[2] / "knative" / "base"
LINE_BYTES = Limits().max_line_bytes
ANSWER_BYTES: int = Settings.model_fields["max_response_bytes"].default
FILE_BYTES: int = Settings.model_fields["max_file_bytes"].default
HEADERS = {"Authorization": f"Bearer {API_KEY}"}
MIB = 1 << 20
DELIVERIES = 5
WIDE = "\N{GRINNING FACE}"
peaks: dict[str, tuple[float, float]] = {}


@dataclass
class OneProgram:
    """A stand-in for a stack with one program."""

    pid: int

    def program(self, _: str) -> OneProgram:
        return self


def assert_within_limit(program: str, pid: int, bound: int = sys.maxsize) -> None:
    """Assert that a program's peak is below its memory limit and below `bound` bytes."""
    peak = peak_memory(cast("Any", OneProgram(pid)), program) / MIB
    limit = memory_limit(program) / MIB
    peaks[program] = (max(peak, peaks.get(program, (0.0, 0.0))[0]), limit)
    print(f"\n{program}: peak {peak:.0f} MiB of {limit:.0f} MiB")
    assert peak < min(limit, bound / MIB)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the peak memory of every program."""
    yield
    print(f"\n{'process':<14} {'peak MiB':>9} {'limit MiB':>10}")
    for program, (peak, limit) in sorted(peaks.items()):
        print(f"{program:<14} {peak:>9.0f} {limit:>10.0f}")


def concurrency(program: str) -> int:
    """Return the `containerConcurrency` of a manifest."""
    text = (BASE / "functions" / f"{program}.yaml").read_text()
    spec = next(iter(yaml.safe_load_all(text)))["spec"]["template"]["spec"]
    return int(spec["containerConcurrency"])


def longest_line(number: int) -> bytes:
    """Return a request of exactly the maximum size, half of it in four-byte characters."""
    head = (
        f'{{"custom_id":"{number}","method":"POST","url":"/v1/embeddings",'
        '"body":{"model":"m","input":"'
    ).encode() + WIDE.encode() * (LINE_BYTES // 8)
    return head + b"y" * (LINE_BYTES - len(head) - 3) + b'"}}'


def longest_file() -> list[bytes]:
    """Return the lines of a file of almost the maximum size."""
    return [longest_line(number) for number in range(1, FILE_BYTES // LINE_BYTES + 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(folder: Path) -> ObstoreObjects:
    return ObstoreObjects(f"file://{folder}")


@pytest.fixture
def serve(shared_database: Database, folder: Path) -> Callable[..., Any]:
    """Start a function with the variables of its manifest."""

    def start(function: str, role: str = "worker", kind: str = "cloudevent", **changes: str) -> Any:
        settings = environment_of(function.replace("_", "-"))
        settings["LOWTIDE_DATABASE_URL"] = shared_database.url(role)
        return serving(function, folder, settings | changes, kind=kind)

    return start


def form_headers(body: bytes) -> dict[str, str]:
    return {"Content-Type": CONTENT_TYPE, "Content-Length": str(len(body))}


def pieces(body: bytes) -> Iterator[bytes]:
    """Return a body in pieces: httpx copies what remains of a piece after each send.

    Several callers in one process that copy bodies of 100 MB are so slow that they are dropped.
    """
    return (body[start : start + MIB] for start in range(0, len(body), MIB))


def together(count: int, call: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    """Make `count` calls at the same time; all must succeed."""
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(call, range(count)))
    assert {answer.status_code // 100 for answer in answers} == {2}, [a.text for a in answers]
    return answers


def drained_batch(
    world: World, store: ObstoreObjects, lines: list[bytes], *, dead_letter: bool
) -> BatchId:
    """Create a drained batch whose answers have the maximum size."""
    batch = batch_of_lines(world, store, lines)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    for claim in world.queue.claim(lease, Pool.SPOT, 100):
        world.queue.settle(lease, [dead(claim) if dead_letter else done(claim)], [])
    world.run(
        """UPDATE results SET body = '"' || repeat(:wide, :length / 8) || repeat('y', :length / 2 - 2)
        || '"' WHERE batch_id = :batch""",
        wide=WIDE,
        length=ANSWER_BYTES,
        batch=batch,
    )
    return batch


def event(server: Server, type_: str, batch: BatchId | None = None) -> httpx.Response:
    """Deliver an event like a broker: again if the function cannot handle it now."""
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/x", "ce-type": type_}
    data = {} if batch is None else {"batch_id": format_batch_id(batch)}
    for _ in range(DELIVERIES):
        answer = httpx.post(server.url, json=data, headers=headers, timeout=600, trust_env=False)
        if answer.status_code != 503:
            break
    return answer


def read_to_end(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """Read a response to its end and discard it."""
    with httpx.stream("GET", url, headers=headers, timeout=600, trust_env=False) as answer:
        for _ in answer.iter_raw(MIB):
            pass
    return httpx.Response(answer.status_code, text=url)


def test_upload_stays_within_memory_limit(serve: Callable[..., Any], world: World) -> None:  # noqa: ARG001
    content = b"\n".join(longest_file()[:3])
    body = form(part("purpose", b"batch"), part("file", content, "a.jsonl"))
    with serve("upload", "api", "http") as server:
        together(
            concurrency("upload"),
            lambda _: httpx.post(
                f"{server.url}/v1/files",
                content=pieces(body),
                headers=HEADERS | form_headers(body),
                timeout=600,
                trust_env=False,
            ),
        )
        assert_within_limit("upload", server.pid)


def test_parts_and_completions_stay_within_memory_limit(
    serve: Callable[..., Any],
    world: World,  # noqa: ARG001
) -> None:
    """Each caller sends a part of the max size and another, and completes them."""
    content = b"\n".join(longest_file()[:3])
    bodies = [
        form(part("data", data, "upload"))
        for data in (content[:MAX_PART_BYTES], content[MAX_PART_BYTES:])
    ]
    creation = {"bytes": len(content), "filename": "a", "mime_type": "b", "purpose": "batch"}
    count = concurrency("upload")
    with serve("upload", "api", "http") as server:

        def send(path: str, **arguments: Any) -> httpx.Response:
            arguments["headers"] = HEADERS | arguments.get("headers", {})
            url = f"{server.url}/v1/uploads{path}"
            return httpx.post(url, timeout=600, trust_env=False, **arguments)

        def add_part(number: int) -> httpx.Response:
            body = bodies[number // count]
            path = f"/{uploads[number % count]}/parts"
            return send(path, content=pieces(body), headers=form_headers(body))

        uploads = [send("", json=creation).json()["id"] for _ in range(count)]
        ids = [answer.json()["id"] for answer in together(2 * count, add_part)]
        assert_within_limit("upload", server.pid, bound=512 * MIB)
        together(
            count,
            lambda number: send(
                f"/{uploads[number]}/complete", json={"part_ids": ids[number::count]}
            ),
        )
        assert_within_limit("upload", server.pid)


def test_split_stays_within_memory_limit(
    serve: Callable[..., Any], world: World, store: ObstoreObjects
) -> None:
    lines = longest_file()
    file = world.file(lines=len(lines))
    with store.open_writer(file.object_key) as writer:
        for line in lines:
            writer.write(line + b"\n")
    batches = [world.new_batch(input_file=file.id) for _ in range(concurrency("split"))]
    with serve("split") as server:
        together(len(batches), lambda n: event(server, "dev.lowtide.batch.created", batches[n]))
        assert_within_limit("split", server.pid)
    assert {world.row(batch).status for batch in batches} == {"in_progress"}


def test_create_batch_stays_within_memory_limit(
    serve: Callable[..., Any], world: World, store: ObstoreObjects
) -> None:
    count = concurrency("create-batch")
    batch = drained_batch(
        world, store, [longest_line(n + 1) for n in range(count)], dead_letter=True
    )
    ids = [format_request_id(*LetterId(batch, line)) for line in range(1, count + 1)]
    with serve("create_batch", "api", "http") as server:
        together(
            count,
            lambda n: httpx.post(
                f"{server.url}/v1/dead_letters/requeue",
                json={"ids": [ids[n]]},
                headers=HEADERS,
                timeout=600,
                trust_env=False,
            ),
        )
        assert_within_limit("create-batch", server.pid)


@pytest.mark.parametrize("resource", ["results", "letters", "letter", "content"])
def test_read_stays_within_memory_limit(
    serve: Callable[..., Any], world: World, store: ObstoreObjects, resource: str
) -> None:
    batch = drained_batch(world, store, [longest_line(n + 1) for n in range(2)], dead_letter=True)
    file = world.row(batch).input_file_id
    paths = {
        "results": f"batches/{format_batch_id(batch)}/results",
        "letters": "dead_letters/content?which=output",
        "letter": f"dead_letters/{format_request_id(batch, 1)}",
        "content": f"files/{format_file_id(file)}/content",
    }
    with serve("read", "api", "http") as server:
        url = f"{server.url}/v1/{paths[resource]}"
        together(concurrency("read"), lambda _: read_to_end(url, HEADERS))
        assert_within_limit("read", server.pid)


def test_finalize_stays_within_memory_limit(
    serve: Callable[..., Any], world: World, store: ObstoreObjects
) -> None:
    batches = [
        drained_batch(world, store, [b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings",'
                               b'"body":{"model":"m"}}' % n for n in range(3)], dead_letter=False)
        for _ in range(concurrency("finalize"))
    ]  # fmt: skip
    with serve("finalize") as server:
        together(len(batches), lambda n: event(server, "dev.lowtide.batch.drained", batches[n]))
        assert_within_limit("finalize", server.pid)
    assert {world.row(batch).status for batch in batches} == {"completed"}


def test_schedule_stays_within_memory_limit(
    serve: Callable[..., Any], world: World, store: ObstoreObjects
) -> None:
    drained_batch(world, store, longest_file(), dead_letter=True)
    with serve("schedule") as server:
        for _ in range(3):
            assert event(server, "dev.knative.sources.ping").status_code // 100 == 2
        assert_within_limit("schedule", server.pid)


def test_worker_stays_within_memory_limit(
    serve: Callable[..., Any], world: World, store: ObstoreObjects
) -> None:
    line = (
        '{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"model":"m",'
        '"x_bytes":%d,"x_kind":"%s","x_chunked":%s}}'
    )
    # Head and chunk framing count, too.
    size = ANSWER_BYTES - (1 << 16)
    answers = [(size, kind, chunked) for kind in KINDS for chunked in ("false", "true", "true")]
    answers += [(ANSWER_BYTES, "plain", "true")] * 4
    lines = [(line % (number, *each)).encode() for number, each in enumerate(answers)]
    batch = batch_of_lines(world, store, lines)
    with answering() as url:
        engine = {"LOWTIDE_ENGINE": "openai", "LOWTIDE_ENGINE_URL": url}
        with serve("infer_spot", **engine) as server:
            until(
                lambda: len(world.lines("results", batch)) == len(lines),
                "every request has a result",
                within=300,
            )
            assert_within_limit("infer-spot", server.pid, bound=worker_bound())
    rows = world.rows(
        "SELECT succeeded, attempts, octet_length(body) FROM results WHERE batch_id = :batch",
        batch=batch,
    )
    assert Counter(map(tuple, rows)) == {(True, 1, size): len(answers) - 4, (False, 1, None): 4}


def test_portal_stays_within_memory_limit(
    world: World,
    store: ObstoreObjects,
    folder: Path,
    shared_database: Database,
    api: StubApi,
    start_portal: Callable[..., Portal],
) -> None:
    batch = format_batch_id(
        drained_batch(world, store, [longest_line(n + 1) for n in range(2)], dead_letter=True)
    )
    portal = start_portal(
        shared_database.url("operator"),
        api.url,
        LOWTIDE_OBJECT_STORE_URL=f"file://{folder}",
        **environment_of("portal"),
    )
    paths = [
        f"/batches/{batch}",
        f"/batches/{batch}?line=1",
        f"/batches/{batch}?custom_id=2",
        f"/batches/{batch}/files/input",
        "/dead-letters",
        "/dead-letters/content?which=output",
        "/dead-letters/content?which=input",
    ]
    cookies = [portal.cookie(secret) for secret in (PORTAL_PASSWORD, VIEWER_PASSWORD)]

    def download(url: str, number: int) -> httpx.Response:
        return read_to_end(url, cookies[number % 2])

    for path in paths:
        together(MOST, partial(download, portal.url + path))
    with launched() as browser:
        visit = new_visit(browser, portal.url)
        visit.context.request.post(f"{portal.url}/sign-in", form={"secret": PORTAL_PASSWORD})
        visit.page.goto(f"{portal.url}/dead-letters")
        visit.page.get_by_role("button", name="View 1").click()
        visit.page.get_by_role("dialog").get_by_text("Last response").wait_for()
        large = folder.parent / "large.jsonl"
        large.write_bytes(b"\n".join(longest_file()[:3]))
        # Their parts are more than may run at once.
        pages = [visit.tab() for _ in range(3)]
        for page in pages:
            page.goto(f"{portal.url}/upload")
            page.get_by_label("Input file").set_input_files(large)
        for page in pages:
            page.get_by_text("Ready", exact=True).wait_for(timeout=300_000)
    assert_within_limit("portal", portal.process.pid)
