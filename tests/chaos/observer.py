"""Observation of a run under faults: batches as their tenants read them, leases and events."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests import oracle

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.workload import Batch, Workload
    from tests.e2e.stacks import LocalStack

READERS = 2
_EVERY = 0.4
_FOREIGN = 5  # one read in this many is repeated as another tenant, which must get 404

_LEASES = """
SELECT id::text AS lease, split_part(name, '/', 2)::integer AS pid,
  extract(epoch FROM clock_timestamp())::float8 AS at, extract(epoch FROM expires_at)::float8 AS ends
FROM workers
"""
_REVOKED = """
SELECT DISTINCT 'batch_' || replace(batch_id::text, '-', ''), line FROM request_events
WHERE kind = 'revoked'
"""
_EVENTS = """
SELECT coalesce(sum(n_tup_ins + n_tup_upd), 0)::bigint FROM pg_stat_user_tables
WHERE schemaname = 'local_broker'
"""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant with its evidence; `at` is in seconds from the start."""

    at: float
    invariant: str
    evidence: str


class Findings:
    """The violations of a run."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.all: list[Violation] = []
        self._lock = threading.Lock()

    def report(self, invariant: str, evidence: str) -> None:
        """Add a violation."""
        with self._lock:
            at = round(time.monotonic() - self.began, 1)
            self.all.append(Violation(at, invariant, evidence))

    def hold(self, invariant: str, check: Callable[[], None], about: str = "") -> bool:
        """Return whether a check passes; an exception becomes a violation."""
        try:
            check()
        except AssertionError as error:
            self.report(invariant, f"{about} {str(error)[:600]}".strip())
            return False
        except Exception as error:  # noqa: BLE001 - a check that cannot run counts as broken
            self.report(invariant, f"{about} {error!r:.600}".strip())
            return False
        return True


class Observer:
    """Threads that sample batches, leases and events until they are stopped."""

    def __init__(self, workload: Workload, stack: LocalStack, findings: Findings) -> None:
        self._workload = workload
        self._stack = stack
        self._findings = findings
        self.leases: list[oracle.LeaseSample] = []
        self.revoked: set[tuple[str, int]] = set()
        """The batch and line of each request that was revoked from its worker."""
        self.event_writes: list[tuple[float, int]] = []
        self.samples = 0
        self._stopping = threading.Event()
        self._threads = [
            *(threading.Thread(target=self._read, args=(n,), daemon=True) for n in range(READERS)),
            threading.Thread(target=self._sample, daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _read(self, number: int) -> None:
        turn = number
        while not self._stopping.wait(0.05):
            live = self._workload.live()
            if not live:
                self._stopping.wait(0.3)
                continue
            turn += READERS
            batch = live[turn % len(live)]
            if turn % READERS != number:
                continue
            try:
                self._check_batch(batch)
                if turn // READERS % _FOREIGN == 0:
                    self._check_isolation(batch, turn)
            except Exception as error:  # noqa: BLE001
                self._findings.report("api", f"{batch.id} could not be read: {error!r}")

    def _check_batch(self, batch: Batch) -> None:
        before = batch.last
        now = batch.tenant.api.batch(batch.id)
        self.samples += 1
        self._findings.hold(
            "history", lambda: oracle.check_history([before, now]), f"{batch.id} ({batch.purpose})"
        )
        batch.states.append(now)

    def _check_isolation(self, batch: Batch, turn: int) -> None:
        others = [one for one in self._workload.tenants if one is not batch.tenant]
        other = others[turn % len(others)]
        paths = [f"/batches/{batch.id}", f"/files/{batch.file}", f"/files/{batch.file}/content"]
        if output := batch.last["output_file_id"]:
            paths.append(f"/files/{output}/content")
        statuses = {path: other.api.status_of(path) for path in paths}
        self._findings.hold("isolation", lambda: oracle.check_hidden(statuses), other.name)
        listed = set(other.api.batches())
        theirs = {one.id for one in self._workload.all() if one.tenant is not other}
        self._findings.hold("isolation", lambda: oracle.check_disjoint(listed, theirs), other.name)

    def _sample(self) -> None:
        # Connection errors are expected while a fault is active.
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
        written = last = 0
        while not self._stopping.wait(_EVERY):
            try:
                rows = self._stack.attempt(_LEASES)
                self.leases += [oracle.LeaseSample(*tuple(row)) for row in rows]
                self.revoked |= {(row[0], row[1]) for row in self._stack.attempt(_REVOKED)}
                counted = self._stack.attempt(_EVENTS)
            except Exception:  # noqa: BLE001, S112 - the database is down or restarts
                continue
            if counted:
                # A crash of the database resets its statistics.
                now = int(counted[0][0])
                written += now - last if now >= last else now
                last = now
                self.event_writes.append((time.monotonic(), written))
