"""The load of a chaos run: batches of several tenants, some of which must fail."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.chaos.exchange import ENDPOINT, FLEETS, MODEL, Request, input_file
from tests.e2e.stacks import FINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.api import Api

WEIGHTS = {"ebb": 1, "flood": 2, "slack": 4}
"""The tenants of a run with their weights."""
MIXES = ((MODEL,), (MODEL,), tuple(FLEETS.values()), tuple(FLEETS.values()), (FLEETS["annex"],))
"""The models of a batch: two of five have those of both fleets."""
LIVE = 3
"""Running batches per tenant, in addition to those that faults create."""


@dataclass(frozen=True)
class Tenant:
    """A tenant and the client with its key."""

    name: str
    api: Api


@dataclass
class Batch:
    """A batch of the run; `purpose` defines its allowed outcomes:

    `plain`, `spared`, `deleted` and `outlived`: completed, whatever happens to its files later; `poison`: some requests fail; `victim`: its input breaks; `cancel` and
    `expire`: it may end that way; `bad`: it must fail or be refused.
    """

    tenant: Tenant
    purpose: str
    requests: Sequence[Request]
    source: bytes
    id: str = ""
    file: str = ""
    refused: str = ""
    contents: tuple[bytes, bytes] | None = None
    """The output and error file, if they were read before their end."""
    states: list[dict[str, Any]] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any]:
        """The latest observed state."""
        return self.states[-1]

    @property
    def is_over(self) -> bool:
        """True if the latest observed state is final."""
        return bool(self.states) and self.last["status"] in FINAL


class Workload:
    """Keep `LIVE` batches per tenant running until it is stopped.

    `size` bounds the requests of a batch. Failed submissions go to `report`.
    """

    def __init__(
        self,
        tenants: Sequence[Tenant],
        seed: int,
        size: tuple[int, int],
        report: Callable[[str, str], None],
    ) -> None:
        self.tenants = tenants
        self.batches: list[Batch] = []
        self._size = size
        self._report = report
        self._numbers = random.Random(f"{seed} workload")  # noqa: S311
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._feed, args=(tenant,), daemon=True) for tenant in tenants
        ]
        self._submitted = 0

    def start(self) -> None:
        """Start to submit batches."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop and wait for the last submission."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def submit(
        self,
        tenant: Tenant,
        purpose: str,
        *,
        poison: Sequence[int] = (),
        window: str = "24h",
        size: int | None = None,
        models: Sequence[str] = (),
        upload: Callable[[bytes], str] | None = None,
        before: Callable[[Batch], None] = lambda _: None,
    ) -> Batch:
        """Upload a file and create its batch; the first requests get the statuses of `poison`.

        Requests are for `models` in turn, by default for those of a fleet or of both, at random.
        `before` is called between upload and creation.
        """
        with self._lock:
            self._submitted += 1
            name = f"{tenant.name}/{self._submitted}"
            number = self._numbers.randint(*self._size) if size is None else size
            models = models or self._numbers.choice(MIXES)
        statuses = [*poison, *[200] * (number - len(poison))]
        requests = [
            Request(f"{name}/{n}", status, models[n % len(models)])
            for n, status in enumerate(statuses, start=1)
        ]
        batch = Batch(tenant, purpose, requests, input_file(requests))
        batch.file = (upload or tenant.api.upload)(batch.source)
        before(batch)
        created = tenant.api.create(batch.file, ENDPOINT, window, key=f"chaos-{name}")
        batch.id = created["id"]
        batch.states.append(created)
        with self._lock:
            self.batches.append(batch)
        return batch

    def add(self, batch: Batch) -> None:
        """Add a batch that was created elsewhere."""
        with self._lock:
            self.batches.append(batch)

    def all(self) -> list[Batch]:
        """Return every batch so far."""
        with self._lock:
            return list(self.batches)

    def live(self, tenant: Tenant | None = None) -> list[Batch]:
        """Return the batches that are not over."""
        return [one for one in self.all() if not one.is_over and tenant in (None, one.tenant)]

    def _feed(self, tenant: Tenant) -> None:
        while not self._stopping.is_set():
            plain = [one for one in self.live(tenant) if one.purpose == "plain"]
            if len(plain) >= LIVE:
                self._stopping.wait(0.2)
                continue
            try:
                self.submit(tenant, "plain")
            except Exception as error:  # noqa: BLE001 - the run continues and reports it at the end
                self._report("api", f"{tenant.name} could not submit: {error!r}")
                self._stopping.wait(1.0)
