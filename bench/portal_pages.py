"""What open pages cost the portal's process and the database: fifty beside one.

    python -m bench.portal_pages [--pages N] [--seconds N] [--only PAGE]

Opens pages as a browser does: signs in, loads the page, and follows it over its websocket, with
compression and acknowledgements, at the default refresh, while batches progress every second.
Prints the process's CPU time as a share of one core and the database's statements per minute, for
one open page and for fifty, of each kind and of all kinds mixed; then one JSON line. Exits with 1
if fifty pages cost 20% of a core, or more statements than one page (for the mixed pages: than one
of each kind).
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import socketio
from sqlalchemy import text

from bench.portal_volume import fill
from bench.stage import ROOT, Stage
from lowtide.core.ids import format_batch_id
from lowtide.database.connections import connect
from lowtide.local.bootstrap import DATABASE
from lowtide.local.database import engine
from lowtide.local.files import SUPERUSER
from lowtide.local.ports import HOST, free_port
from lowtide.tenants.passwords import hash_password

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import Engine

    from lowtide.core.ids import BatchId

MAX_CPU = 0.2
# Readings are at most 2 s apart: two windows of the same length may differ by one reading.
SLACK = 1.1
SETTLED = 6.0
ACKNOWLEDGED = 3.0
PASSWORD = uuid.uuid4().hex
PAGES = {
    "overview": "/",
    "batches": "/batches",
    "queues": "/queues",
    "health": "/health",
    "tenants": "/tenants",
}
STATISTICS = {
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track_utility": "off",
}
STATEMENTS = text(
    "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements "
    "WHERE userid = 'lowtide_operator'::regrole"
)
# Resets the ten newest batches, so that pages that list them change throughout the run.
START = text("""
WITH chosen AS (SELECT id FROM batches ORDER BY id DESC LIMIT 10),
  emptied AS (UPDATE tallies SET completed = 0 WHERE batch_id IN (TABLE chosen) RETURNING 1)
UPDATE batches SET status = 'in_progress', total = 50000, completed = 0, failed = 0,
  completed_at = NULL, expired_at = NULL, cancelled_at = NULL WHERE id IN (TABLE chosen)
""")
MOVE = text("""
UPDATE tallies SET completed = completed + 7
WHERE batch_id IN (SELECT id FROM batches ORDER BY id DESC LIMIT 10)
""")
LEAVE = text("""
UPDATE queued_runs SET lines = lines - first_lines(lines, 7), size = size - 7,
  line = lower(lines - first_lines(lines, 7))
WHERE (batch_id, line) IN (SELECT batch_id, line FROM queued_runs WHERE size > 7 LIMIT 1)
""")


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a set of open pages: CPU as a share of one core, the others per minute."""

    cpu: float
    statements: float
    messages: float
    kilobytes: float


@dataclass
class Tab:
    """One open page, and the messages sent to it."""

    client: socketio.AsyncClient
    id: str
    next_message: int
    messages: int = 0
    bytes: int = 0

    async def acknowledge(self) -> None:
        """Acknowledge received messages at intervals, as a browser does."""
        while True:
            await asyncio.sleep(ACKNOWLEDGED)
            message = {"client_id": self.id, "next_message_id": self.next_message}
            await self.client.emit("ack", message)


@dataclass
class Portal:
    """The portal's process, and the session's cookies."""

    url: str
    process: psutil.Process
    cookies: dict[str, str] = field(default_factory=dict)

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        used = self.process.cpu_times()
        return float(used.user + used.system)

    def sign_in(self) -> None:
        """Sign in as an operator."""
        answer = httpx.post(f"{self.url}/sign-in", data={"secret": PASSWORD}, trust_env=False)
        self.cookies = dict(answer.cookies)

    @asynccontextmanager
    async def tab(self, path: str) -> AsyncIterator[Tab]:
        """Load a page, and follow it until the block ends."""
        async with httpx.AsyncClient(
            base_url=self.url, cookies=self.cookies, trust_env=False, timeout=60
        ) as browser:
            shown = (await browser.get(path)).raise_for_status().text
        query = _query_of(shown)
        client = socketio.AsyncClient(
            reconnection=False,
            request_timeout=30,
            websocket_extra_options={"compress": 15},
            handle_sigint=False,
        )
        tab = Tab(client, query["client_id"], int(query["next_message_id"]))

        async def received(_: str, sent: dict[str, Any]) -> None:
            tab.messages += 1
            tab.bytes += len(json.dumps(sent))
            tab.next_message = sent.get("_id", tab.next_message) + 1

        client.on("*", received)
        words = query | {"document_id": str(uuid.uuid4()), "tab_id": str(uuid.uuid4())}
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        await client.connect(
            f"{self.url}?{httpx.QueryParams(words)}",
            headers={"Cookie": cookie},
            socketio_path="/_nicegui_ws/socket.io",
            transports=["websocket"],
            wait_timeout=30,
        )
        acknowledging = asyncio.create_task(tab.acknowledge())
        try:
            yield tab
        finally:
            acknowledging.cancel()
            await client.disconnect()


def _query_of(page: str) -> dict[str, str]:
    """Return the query that a page's script opens the websocket with."""
    found = re.search(r"query: (\{.*?\}),\n", page)
    if found is None:
        raise SystemExit("The page has no WebSocket: check that the client is signed in.")
    query = {name: str(value) for name, value in ast.literal_eval(found[1]).items()}
    return query | {"implicit_handshake": "true"}


async def cost_of(portal: Portal, admin: Engine, paths: list[str], seconds: float) -> Cost:
    """Return the cost of open pages."""

    def statements() -> int:
        with admin.connect() as connection:
            return int(connection.execute(STATEMENTS).scalar_one())

    async with AsyncExitStack() as browser:
        tabs = [await browser.enter_async_context(portal.tab(path)) for path in paths]
        await asyncio.sleep(SETTLED)
        before = statements(), sum(tab.messages for tab in tabs), sum(tab.bytes for tab in tabs)
        start, used = time.perf_counter(), portal.cpu()
        await asyncio.sleep(seconds)
        used, took = portal.cpu() - used, time.perf_counter() - start
        after = statements(), sum(tab.messages for tab in tabs), sum(tab.bytes for tab in tabs)
        lost = [tab for tab in tabs if not tab.client.connected]
        if lost:
            raise SystemExit(f"{len(lost)} pages lost their connection.")
    asked, sent, size = (60 * (b - a) / took for a, b in zip(before, after, strict=True))
    # The portal drops a page seconds after its browser has left: wait before the next round.
    await asyncio.sleep(SETTLED)
    return Cost(used / took, asked, sent, size / 1000)


@contextmanager
def serving(stage: Stage) -> Iterator[Portal]:
    """Run the portal as in production."""
    port = free_port()
    environment = stage.environment("operator") | {
        "LOWTIDE_PORTAL_PORT": str(port),
        "LOWTIDE_HEALTH_PORT": str(free_port()),
        "LOWTIDE_PORTAL_SECRET": uuid.uuid4().hex,
        "LOWTIDE_PORTAL_PASSWORD_HASH": hash_password(PASSWORD),
        "LOWTIDE_PORTAL_TENANT_DATABASE_URL": stage.url("api"),
        "NICEGUI_STORAGE_PATH": str(stage.folder / "storage"),
    }
    process = subprocess.Popen([sys.executable, "-m", "portal"], env=environment, cwd=ROOT)
    portal = Portal(f"http://{HOST}:{port}", psutil.Process(process.pid))
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{portal.url}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("The portal did not start.") from None
                time.sleep(0.05)
        portal.sign_in()
        yield portal
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def moving(worker: Engine) -> Iterator[None]:
    """Let batches progress every second."""
    done = threading.Event()

    def move() -> None:
        while not done.wait(1):
            with worker.begin() as connection:
                connection.execute(MOVE)
                connection.execute(LEAVE)

    with worker.begin() as connection:
        connection.execute(START)
    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def measure(
    portal: Portal, admin: Engine, batch: BatchId, given: argparse.Namespace
) -> dict[str, tuple[Cost, Cost]]:
    """Return the costs of one page and of many, of each kind and mixed."""
    pages = PAGES | {"batch": f"/batches/{format_batch_id(batch)}"}
    rounds = {name: ([path], [path] * given.pages) for name, path in pages.items()}
    each = list(pages.values())
    rounds["mixed"] = (each, (each * given.pages)[: given.pages])
    found = {}
    for name, (few, many) in rounds.items():
        if given.only in (None, name):
            costs = [await cost_of(portal, admin, paths, given.seconds) for paths in (few, many)]
            found[name] = (costs[0], costs[1])
            _tell(name, (len(few), len(many)), found[name])
    return found


def _tell(name: str, counts: tuple[int, int], costs: tuple[Cost, Cost]) -> None:
    for count, cost in zip(counts, costs, strict=True):
        print(
            f"{name:10} {count:3} open   {cost.cpu:6.1%} of a core   "
            f"{cost.statements:6.0f} statements/min   {cost.messages:6.0f} messages, "
            f"{cost.kilobytes:7.0f} kB/min",
            flush=True,
        )
    one, many = costs
    print(
        f"{'':10} statements, {counts[1]} pages / {counts[0]}: {many.statements / one.statements:.2f}"
    )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pages", type=int, default=50, help="open pages")
    parser.add_argument("--seconds", type=float, default=30, help="duration of each measurement")
    parser.add_argument("--only", help="only this kind of page, or mixed")
    given = parser.parse_args()
    os.environ.pop("LOWTIDE_DATABASE_URL", None)
    folder = Path(tempfile.mkdtemp(prefix="bench-pages-"))
    try:
        with Stage(folder, STATISTICS) as stage:
            url = stage.server.url(SUPERUSER, stage.secrets.passwords[SUPERUSER], DATABASE)
            admin, owner, worker = (
                engine(url),
                connect(stage.url("owner"), timeout=300),
                connect(stage.url("worker"), timeout=300),
            )
            with admin.connect() as connection:
                connection.execute(text("CREATE EXTENSION pg_stat_statements"))
            batch = fill(worker, owner, batches=1_000, requests=100_000)
            with serving(stage) as portal, moving(worker):
                found = asyncio.run(measure(portal, admin, batch, given))
            for each in (owner, worker):
                each.dispose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({n: {"one": vars_of(o), "many": vars_of(m)} for n, (o, m) in found.items()}))
    over = [
        name
        for name, (one, many) in found.items()
        if many.cpu >= MAX_CPU or many.statements > one.statements * SLACK
    ]
    if over:
        raise SystemExit(f"Above the threshold: {', '.join(over)}")


def vars_of(cost: Cost) -> dict[str, float]:
    """Return a cost's figures, rounded."""
    return {
        "cpu": round(cost.cpu, 3),
        "statements": round(cost.statements),
        "messages": round(cost.messages),
        "kilobytes": round(cost.kilobytes),
    }


if __name__ == "__main__":
    main()
