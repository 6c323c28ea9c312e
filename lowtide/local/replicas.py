"""The replicas of a workload, and the scaler that sets their count."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from lowtide.database.connections import engine_of
from lowtide.local import autoscaler
from lowtide.local.manifests import TriggerAuthentication
from lowtide.local.options import BadManifest
from lowtide.local.processes import Process, State

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from lowtide.local.environment import Values
    from lowtide.local.manifests import ScaledObject
    from lowtide.local.processes import Log
    from lowtide.local.workloads import Manifests, Workload


class ReplicaSet:
    """The replicas of one workload; a stopping replica stays listed until it has ended.

    `make` creates a replica by name; `changed` is called when one has left the list.
    """

    def __init__(
        self,
        workload: Workload,
        make: Callable[[str], Process],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.workload = workload
        self.name = workload.name
        self.active: list[Process] = []
        self.leaving: list[Process] = []
        self._make = make
        self._changed = changed
        self._stops: set[asyncio.Task[None]] = set()

    @property
    def wanted(self) -> int:
        """The desired number of replicas."""
        return len(self.active)

    @property
    def processes(self) -> list[Process]:
        """Every process that may still run."""
        return [*self.active, *self.leaving]

    def scale(self, count: int) -> None:
        """Start replicas, or stop the newest ones gracefully."""
        while len(self.active) < count:
            process = self._make(self._free_name())
            self.active.append(process)
            process.start()
        while len(self.active) > count:
            task = asyncio.create_task(self._retire(self.active.pop()))
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    async def stop(self) -> None:
        """Stop all replicas, and wait until they have ended."""
        self.scale(0)
        while self._stops:
            await asyncio.wait(list(self._stops))

    def addresses(self) -> list[str]:
        """Return the base URLs of the ready replicas."""
        return [
            f"http://127.0.0.1:{process.launch.port}"
            for process in self.active
            if process.state is State.READY and process.launch is not None
        ]

    async def _retire(self, process: Process) -> None:
        self.leaving.append(process)
        try:
            await process.stop()
        finally:
            self.leaving.remove(process)
            self._changed()

    def _free_name(self) -> str:
        if not self.workload.scaled and self.workload.replicas <= 1:
            return self.name
        names = {process.name for process in self.processes}
        number = 1
        while f"{self.name}-{number}" in names:
            number += 1
        return f"{self.name}-{number}"


class Scaler:
    """One ScaledObject and the replicas that it scales."""

    def __init__(
        self, scaler: ScaledObject, connection: str, replicas: ReplicaSet, log: Log
    ) -> None:
        self.policy = autoscaler.policy(scaler)
        self._replicas = replicas
        self._log = log
        self._query = text(self.policy.query)
        self._asked = asyncio.Event()
        # One connection stays open, as in KEDA; the ping detects a restarted server.
        self._engine = engine_of(
            make_url(connection),
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": 5, "application_name": "lowtide-autoscaler"},
        )

    def ask(self) -> None:
        """Poll now instead of at the next interval."""
        self._asked.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        memory = autoscaler.Memory(replicas=self._replicas.wanted)
        while True:
            # Cleared before the poll, so that a request queued from here on is counted by the next.
            self._asked.clear()
            value = await asyncio.to_thread(self.read)
            if value is None and memory.failures == 0:
                self._log.line("autoscaler", f"{self._replicas.name}: no metric, keeping replicas")
            memory = autoscaler.decide(self.policy, memory, value, time.monotonic())
            if memory.replicas != self._replicas.wanted:
                reason = "without a metric" if value is None else f"for {value:g} requests"
                self._log.line(
                    "autoscaler",
                    f"{self._replicas.name}: {self._replicas.wanted} -> {memory.replicas} "
                    f"replicas {reason}",
                )
                await self._scale(memory.replicas)
            await self._pause(self._asked.wait(), self.policy.interval)

    async def _scale(self, count: int) -> None:
        """Set the number of replicas; from zero, start one alone, and the others once it is ready.

        KEDA starts one and the HPA adds the others. On few cores, replicas that start together slow
        down each other's first claim.
        """
        if count > 1 and self._replicas.wanted == 0:
            self._replicas.scale(1)
            await self._pause(self._replicas.active[0].is_ready.wait(), self.policy.interval)
        self._replicas.scale(count)

    @staticmethod
    async def _pause(event: Coroutine[object, object, object], seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(event, seconds)

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def read(self) -> float | None:
        """Return the metric; None if the database does not answer."""
        try:
            with self._engine.connect() as connection:
                value = connection.scalar(self._query)
        except Exception as error:  # noqa: BLE001 - without this loop no worker would start
            # The driver raises errors of other types when the server dies.
            if not isinstance(error, SQLAlchemyError):
                self._log.line("autoscaler", f"{self._replicas.name}: {error!r}")
                self._engine.dispose()
            return None
        return None if value is None else float(value)


def connection_of(scaler: ScaledObject, manifests: Manifests, secrets: Values) -> str:
    """Return the database URL that the scaler's TriggerAuthentication refers to.

    Raises BadManifest if there is none.
    """
    name = scaler.metadata.name
    reference = scaler.spec.triggers[0].authentication_ref
    for authentication in manifests.all(TriggerAuthentication):
        if reference is None or authentication.metadata.name != reference.name:
            continue
        for parameter in authentication.spec.secret_target_ref:
            if parameter.parameter == "connection":
                try:
                    return secrets[parameter.name][parameter.key]
                except KeyError as error:
                    raise BadManifest(f"ScaledObject {name}: no secret {error}") from error
    raise BadManifest(
        f"ScaledObject {name}: its trigger needs an authenticationRef with a connection"
    )
