"""Inputs that are broken by their sender or in the store."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from tests.chaos.api import RefusedError
from tests.chaos.exchange import ENDPOINT, MODEL
from tests.chaos.workload import Batch
from tests.e2e.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row

    from tests.chaos.system import System
    from tests.chaos.workload import Tenant, Workload

_PREFIX = "lowtide/"  # of the stack's store URL


def spoil(system: System, batch: Batch, how: str) -> bool:
    """Delete, overwrite or truncate a batch's input; return whether that succeeded."""

    def key_of() -> Sequence[Row[*tuple[Any, ...]]]:
        return system.stack.attempt(
            "SELECT object_key FROM files WHERE id = cast(:file AS uuid)",
            file=batch.file.removeprefix("file-"),
        )

    key = _PREFIX + until(key_of, "the database has the object's key", every=0.2)[0][0]
    for _ in range(5):
        if how == "missing":
            done = system.store.send("DELETE", key)
        elif how == "truncated":
            done = system.store.send("PUT", key, batch.source[: len(batch.source) // 2])
        else:
            noise = random.Random(batch.file).randbytes(len(batch.source))  # noqa: S311
            done = system.store.send("PUT", key, noise)
        if done:
            return True
    return False


def _line(custom_id: str, url: str = ENDPOINT, model: object = MODEL) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "bad"}]}
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(line).encode() + b"\n"


BAD = {
    "json": _line("1") + b'{"custom_id": oops}\n',
    "utf8": _line("1") + b'{"custom_id": "\xff\xfe"}\n',
    "duplicate": _line("1") + _line("1"),
    "url": _line("1", url="/v1/nothing"),
    "empty": b"",
    "nul": _line("1") + b"\x00\n",
    "model": _line("1") + _line("2", model=7),
}


def send_bad(workload: Workload, tenant: Tenant, how: str) -> str:
    """Send an input that must be refused or fail its batch; return the batch or the reason."""
    batch = Batch(tenant, "bad", (), BAD[how])
    try:
        batch.file = tenant.api.upload(batch.source)
        created = tenant.api.create(batch.file, ENDPOINT, "24h", key=f"bad-{batch.file}")
    except RefusedError as error:
        return str(error)
    batch.id = created["id"]
    batch.states.append(created)
    workload.add(batch)
    return batch.id
