"""Injection of scheduled faults: one method per area, chosen by the kind's name."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

from tests.chaos import events, fleets, inputs, lifecycle
from tests.chaos.exchange import FLEETS
from tests.chaos.schedule import kind_of
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.chaos.observer import Findings
    from tests.chaos.schedule import Fault
    from tests.chaos.system import System
    from tests.chaos.workload import Tenant, Workload
    from tests.e2e.stacks import Program

_PATIENCE = 20.0  # seconds that a fault waits for its target
_SWALLOW_SECONDS = 30.0  # maximum time until the event to lose was sent
_BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE application_name LIKE 'lowtide%' AND pid <> pg_backend_pid() ORDER BY pid
"""


class MissedError(Exception):
    """The target of a fault did not exist."""


class Injector:
    """Inject one fault per thread at a time; `done` are the injected faults, `missed` the others."""

    def __init__(
        self, system: System, workload: Workload, findings: Findings, record: Path
    ) -> None:
        self.system = system
        self.workload = workload
        self.done: list[Fault] = []
        self.missed: list[tuple[Fault, str]] = []
        self._findings = findings
        self._record = record
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._supervised = threading.Event()
        self._supervised.set()
        self._areas: dict[str, Callable[[Fault], str]] = {
            "process": self._process,
            "workers": self._storm,
            "supervisor": self._supervisor,
            "postgres": self._postgres,
            "disk": self._disk,
            "store": self._store,
            "net": self._net,
            "engine": self._engine,
            "fleet": self._fleet,
            "object": self._object,
            "event": self._event,
            "input": self._input,
            "batch": self._batch,
            "data": self._data,
        }

    def inject(self, fault: Fault) -> None:
        """Inject a fault and wait until it is over."""
        at = time.monotonic() - self._findings.began
        try:
            struck = self._areas[kind_of(fault).area](fault)
        except MissedError as error:
            self._missed(fault, str(error))
            return
        except Exception as error:  # noqa: BLE001 - a failed fault must not end the run
            self._missed(fault, repr(error)[:200])
            return
        with self._lock:
            self.done.append(fault)
            with self._record.open("a") as file:
                record = {**fault.to_dict(), "struck": struck, "began": round(at, 2)}
                print(json.dumps(record), file=file)

    def retry_missed(self) -> None:
        """Inject the missed faults again, one after the other."""
        with self._lock:
            missed, self.missed = self.missed, []
        for fault, _ in missed:
            self.inject(fault)

    @property
    def processed(self) -> int:
        """The number of faults that are over, injected or missed."""
        with self._lock:
            return len(self.done) + len(self.missed)

    def _missed(self, fault: Fault, why: str) -> None:
        with self._lock:
            self.missed.append((fault, why))

    @contextmanager
    def _exclusively(self, name: str) -> Iterator[None]:
        """Allow one fault at a time per target."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield

    # Processes

    def _programs(self, target: str) -> list[Program]:
        self._supervised.wait(120)
        programs = [
            program
            for name, program in sorted(self.system.stack.programs().items())
            if program.pid is not None
            and (name == target or name.startswith((f"{target}-", f"infer-{target}-")))
            and program.state in {"ready", "starting"}
        ]
        return [one for one in programs if psutil.pid_exists(one.pid or 0)]

    def _one(self, fault: Fault, target: str) -> Program:
        deadline = time.monotonic() + _PATIENCE
        while not (programs := self._programs(target)):
            # The dedicated pool may be empty without work: any worker will do.
            if target == "dedicated" and (programs := self._programs("spot")):
                break
            if time.monotonic() > deadline:
                raise MissedError(f"no {target} was running")
            time.sleep(0.2)
        return programs[fault.pick % len(programs)]

    def _process(self, fault: Fault) -> str:
        program = self._one(fault, fault.target)
        with self._exclusively(program.name):
            pid = program.pid or 0
            how = fault.kind.partition(".")[2]
            if how == "kill_child":
                children = [one.pid for one in psutil.Process(pid).children()]
                if not children:
                    how, children = "kill", [pid]
                os.kill(children[fault.pick % len(children)], signal.SIGKILL)
            elif how == "stop":
                self._stop_group(pid, fault.seconds)
            else:
                os.killpg(pid, signal.SIGTERM if how == "term" else signal.SIGKILL)
        return program.name

    def _stop_group(self, pid: int, seconds: float) -> None:
        os.killpg(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGCONT)

    def _storm(self, fault: Fault) -> str:
        self._one(fault, "spot")
        programs = self._programs("spot")
        victims = programs[: (len(programs) + 1) // 2]
        for program in victims:
            with suppress(ProcessLookupError):
                os.killpg(program.pid or 0, signal.SIGKILL)
        return ", ".join(program.name for program in victims)

    def _supervisor(self, _: Fault) -> str:
        with self._exclusively("supervisor"):
            stack = self.system.stack
            self._supervised.clear()
            try:
                supervisor = stack.supervisor
                supervisor.kill()
                until(
                    lambda: not supervisor.is_running() or stack.reap(), "the supervisor has exited"
                )
                for attempt in range(3):
                    try:
                        stack.up()
                        break
                    except AssertionError as error:
                        if attempt == 2:
                            self._findings.report("restart", f"no start after kill -9: {error}")
                stack.forget_connections()
            finally:
                self._supervised.set()
        return "supervisor"

    # Databases, disks, the store, the network

    def _postgres(self, fault: Fault) -> str:
        how = fault.kind.partition(".")[2]
        with self._exclusively("postgres"):
            if how in {"kill", "stop"}:
                pid = self._one(fault, "postgres").pid or 0
                if how == "kill":
                    os.kill(pid, signal.SIGKILL)
                else:
                    self._stop_group(pid, fault.seconds)
                return "postmaster"
            backend = self._backend(fault)
            if how == "terminate":
                self.system.stack.query("SELECT pg_terminate_backend(:pid)", pid=backend)
            elif how == "kill_backend":
                os.kill(backend, signal.SIGKILL)
            else:
                os.kill(backend, signal.SIGSTOP)
                time.sleep(fault.seconds)
                with suppress(ProcessLookupError):
                    os.kill(backend, signal.SIGCONT)
            return f"backend {backend}"

    def _backend(self, fault: Fault) -> int:
        deadline = time.monotonic() + _PATIENCE
        while not (rows := self.system.stack.attempt(_BACKENDS)):
            if time.monotonic() > deadline:
                raise MissedError("no backend")
            time.sleep(0.2)
        return int(rows[fault.pick % len(rows)][0])

    def _disk(self, fault: Fault) -> str:
        with self._exclusively(fault.target):
            disk = self.system.disks[fault.target]
            disk.fill()
            try:
                time.sleep(fault.seconds)
            finally:
                disk.empty()
            if fault.target == "store":
                # After a failed write SeaweedFS's index rejects every write until a restart.
                self._restart_store()
        return fault.target

    def _restart_store(self) -> None:
        store = self.system.store
        store.stop()
        store.start()
        until(lambda: store.send("GET", ""), "the store is back", within=60)

    def _store(self, fault: Fault) -> str:
        store = self.system.store
        with self._exclusively("store"):
            if fault.kind == "store.stop":
                store.signal(signal.SIGSTOP)
                time.sleep(fault.seconds)
                store.signal(signal.SIGCONT)
            else:
                self._restart_store()
        return "store"

    def _net(self, fault: Fault) -> str:
        assert self.system.proxies is not None
        mode = fault.kind.partition(".")[2]
        # Seconds per piece, or bytes until the cut.
        amount = 0.02 + fault.pick % 200 / 1000 if mode == "delay" else fault.pick * 2
        with self._exclusively(f"net {fault.target}"):
            self.system.proxies.order(
                name=fault.target, mode=mode, seconds=fault.seconds, amount=amount
            )
            time.sleep(fault.seconds)
        return fault.target

    def _engine(self, fault: Fault) -> str:
        target = "*"
        if fault.target == "one":
            workers = [*self._programs("spot"), *self._programs("dedicated")]
            target = workers[fault.pick % len(workers)].name if workers else "infer-spot-main-1"
        mode = fault.kind.partition(".")[2]
        with self._exclusively(f"engine {target}"):
            for engine in self.system.engines.values():
                engine.order(mode=mode, target=target, seconds=fault.seconds)
            time.sleep(fault.seconds)
        return target

    def _fleet(self, fault: Fault) -> str:
        """Disturb one fleet until a new batch of the other one is over, which must be in time."""
        (other,) = (fleet for fleet in FLEETS if fleet != fault.target)
        # Two at once could disturb both fleets, and wait for each other's batches; a fault of all
        # engines would replace this one, and end it.
        with (
            self._exclusively("fleets"),
            self._exclusively("engine *"),
            fleets.disturbed(self.system, fault) as struck,
        ):
            batch = fleets.submit_to(other, self.workload, self._tenant(fault))
            time.sleep(fault.seconds)
            until(lambda: batch.is_over, f"{batch.id} is over", within=fleets.PATIENCE)
        return f"{struck}, beside {batch.id}"

    # Tenants, their objects and events

    def _tenant(self, fault: Fault) -> Tenant:
        return self.workload.tenants[fault.pick % len(self.workload.tenants)]

    def _object(self, fault: Fault) -> str:
        how = fault.kind.partition(".")[2]
        tenant = self._tenant(fault)
        broken: list[bool] = []
        if fault.pick % 4 == 0:  # before its split
            batch = self.workload.submit(
                tenant,
                "victim",
                size=300,
                before=lambda one: broken.append(inputs.spoil(self.system, one, how)),
            )
        else:
            batch = self.workload.submit(tenant, "victim", size=300)
            with suppress(AssertionError):
                until(lambda: batch.last["status"] != "validating", "the batch is split", within=30)
            broken.append(inputs.spoil(self.system, batch, how))
        if not broken[0]:
            raise MissedError("the store accepted no change")
        return batch.id

    def _input(self, fault: Fault) -> str:
        return inputs.send_bad(self.workload, self._tenant(fault), fault.target)

    def _batch(self, fault: Fault) -> str:
        tenant = self._tenant(fault)
        how = fault.kind.partition(".")[2]
        if how == "poison":
            status = int(fault.target)
            return self.workload.submit(tenant, "poison", poison=[status] * 2).id
        if how == "expire":
            return self.workload.submit(tenant, "expire", poison=[500] * 3, window="1m", size=60).id
        batch = self.workload.submit(tenant, "cancel")
        time.sleep(fault.pick % 20 / 10)
        tenant.api.cancel(batch.id)
        return batch.id

    def _data(self, fault: Fault) -> str:
        tenant = self._tenant(fault)
        match fault.kind.partition(".")[2]:
            case "parts":

                def upload(data: bytes) -> str:
                    return lifecycle.upload_in_parts(tenant, data, fault.pick)

                return self.workload.submit(tenant, "plain", upload=upload).id
            case "delete":
                return lifecycle.delete(self.workload, tenant).id
            case "outlive":
                return lifecycle.end_retention(self.system, self.workload, tenant).id
        return lifecycle.add_past_partitions(self.system, 2 + fault.pick % 300)

    def _event(self, fault: Fault) -> str:
        how = fault.kind.partition(".")[2]
        if how in {"lost", "delayed"}:
            return self._lose_event(fault, deliver_late=how == "delayed")
        program = self._one(fault, fault.target)
        batches = [batch.id for batch in self.workload.all()]
        batch = batches[fault.pick % len(batches)] if batches else "batch_" + "0" * 32
        events.post(f"http://127.0.0.1:{program.port}/", how, fault.target, batch, fault.pick)
        return f"{program.name} {batch}"

    def _lose_event(self, fault: Fault, *, deliver_late: bool) -> str:
        """Lose the event of a new batch on its way to the broker, or deliver it late."""
        assert self.system.proxies is not None
        with self._exclusively("net broker"):
            self.system.proxies.order(name="broker", mode="swallow", seconds=_SWALLOW_SECONDS)
            batch = self.workload.submit(self._tenant(fault), "plain", size=30).id
            time.sleep(min(fault.seconds, 2.0))  # events are sent in the background
            self.system.proxies.order(name="broker", mode="heal")
        if deliver_late:
            time.sleep(fault.seconds)
            program = self._one(fault, "broker")
            url = f"http://127.0.0.1:{program.port}/"
            events.post(url, "duplicate", "broker", batch, fault.pick)
        return batch
