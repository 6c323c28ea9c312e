"""Dead letters in the database and the store of a portal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.objects.store import ObstoreObjects
from tests.dead_letters.letters import batch_of_lines, bury

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId, TenantId
    from tests.portal.conftest import Portal
    from tests.worlds import World


def store_of(portal: Portal) -> ObstoreObjects:
    """Return the object store of a test portal."""
    folder = portal.log.parent / "objects"
    folder.mkdir(exist_ok=True)
    return ObstoreObjects(folder.as_uri())


def batch_with_dead_letters(
    world: World,
    portal: Portal,
    names: list[str],
    *,
    dead: tuple[int, ...],
    code: int | None = 500,
    tenant: TenantId = DEFAULT_TENANT,
) -> BatchId:
    """Create a batch with a request for each custom_id; the lines `dead` are dead letters."""
    common = {"method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}}
    lines = [json.dumps({"custom_id": name} | common) for name in names]
    batch = batch_of_lines(world, store_of(portal), [line.encode() for line in lines], tenant)
    bury(world, batch, dead, status_code=code)
    return batch
