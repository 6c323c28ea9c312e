"""The replicas of one workload: as many processes as are wanted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lowtide.local.processes import Process, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.local.workloads import Workload


class ReplicaSet:
    """Starts and stops replicas; those on their way out stay listed until they are gone.

    `make` makes a replica of a name, `changed` is called when one has left the list.
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
        """The number of replicas that are to run."""
        return len(self.active)

    @property
    def processes(self) -> list[Process]:
        """Every process that may still live."""
        return [*self.active, *self.leaving]

    def scale(self, count: int) -> None:
        """Start replicas, or let the newest ones finish their work and end."""
        while len(self.active) < count:
            process = self._make(self._free_name())
            self.active.append(process)
            process.start()
        while len(self.active) > count:
            task = asyncio.create_task(self._retire(self.active.pop()))
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    async def stop(self) -> None:
        """Stop all replicas; returns once they are gone."""
        self.scale(0)
        while self._stops:
            await asyncio.wait(list(self._stops))

    def addresses(self) -> list[str]:
        """Return the base URLs of the replicas that are ready."""
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
        taken = {process.name for process in self.processes}
        number = 1
        while f"{self.name}-{number}" in taken:
            number += 1
        return f"{self.name}-{number}"
