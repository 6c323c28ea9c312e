"""Batches of several fleets, as the portal shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lowtide.batches.detail_store import BatchDetailStore
from lowtide.batches.list_store import BatchListStore
from lowtide.batches.views import BatchFilter, BatchOrder
from lowtide.core.ids import BatchId
from lowtide.fleets.placement import BatchPart
from portal.components.batch_table import row_of
from portal.pages.batch_facts import part_in_words
from tests.portal.seeds import SeedBatch, add_batch

if TYPE_CHECKING:
    from tests.conftest import Database


def test_batch_shows_its_requests_by_fleet(database: Database) -> None:
    batch = add_batch(database.engine("worker"), SeedBatch(parts={"small": 1, "large": 1200}))
    details = BatchDetailStore(database.engine("operator")).details(None, BatchId(batch))
    assert details.parts == (BatchPart("large", 1200, "large"), BatchPart("small", 1, "small"))
    assert [part_in_words(part) for part in details.parts] == [
        "large, 1,200 requests",
        "small, 1 request",
    ]
    assert part_in_words(BatchPart("large", 2)) == "Several models, 2 requests"


def test_batch_of_one_fleet_has_no_parts(database: Database) -> None:
    batch = add_batch(database.engine("worker"), SeedBatch(fleet="large"))
    details = BatchDetailStore(database.engine("operator")).details(None, BatchId(batch))
    assert (details.parts, details.batch.fleets) == ((), ())


def test_list_shows_the_fleets_of_a_batch_of_several_models(database: Database) -> None:
    worker = database.engine("worker")
    add_batch(worker, SeedBatch())
    add_batch(worker, SeedBatch(parts={"small": 1, "large": 2}))
    page = BatchListStore(database.engine("operator")).page(
        None, BatchFilter(), BatchOrder.NEWEST, after=None, limit=9
    )
    rows = [row_of(batch, datetime.now(UTC), "")["model"] for batch in page]
    assert rows == ["small, large", "llama-3.1-8b"]
