"""Lists and counts of dead letters of several tenants, as an operator reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.dead_letters import store as dead_letters_store
from lowtide.dead_letters.model import (
    MESSAGE_LENGTH,
    ErrorGroup,
    LetterFilter,
    LetterId,
    LetterState,
    LetterSummary,
)
from lowtide.dead_letters.store import DeadLetterStore
from tests.worlds import World, emptied

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.dead_letters.model import DeadLetter
    from tests.conftest import Database

LONG = "x" * 300


@pytest.fixture(scope="module")
def world(shared_database: Database) -> World:
    """Letters of two tenants that died by turns, and a tenant without letters."""
    world = World(emptied(shared_database))
    world.tenant("empty")
    for place, tenant in enumerate((DEFAULT_TENANT, world.tenant("other"))):
        batch = world.new_batch(tenant)
        world.run(
            """INSERT INTO requests SELECT id, line, tenant_id, line * 100, 90, line::text
               FROM batches, generate_series(1, 6) AS line WHERE id = :batch""",
            batch=batch,
        )
        world.run(
            """INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line,
                 input_tokens, output_tokens, attempts, interruptions, succeeded, escalated,
                 dead_lettered, pool, request_id)
               SELECT batch_id, tenant_id, batch_id, now(), now(), line, 0, 0, 5, 0, false, false,
                 true, 'spot', 'r' FROM requests WHERE batch_id = :batch""",
            batch=batch,
        )
        world.run(
            """INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, error_code,
                 error_message, at, state, ended_at)
               SELECT batch_id, line, tenant_id, 5,
                 CASE WHEN line > 4 THEN 'worker_lost' ELSE 'timeout' END,
                 CASE WHEN line > 4 THEN NULL WHEN line > 2 THEN :long || line ELSE 'No answer' END,
                 now() - (2 * line + :place) * interval '1 s',
                 CASE WHEN line = 6 THEN 'discarded' ELSE 'open' END,
                 CASE WHEN line = 6 THEN now() END
               FROM requests WHERE batch_id = :batch""",
            batch=batch, place=place, long=LONG,
        )  # fmt: skip
    return world


@pytest.fixture
def letters(world: World) -> DeadLetterStore:
    """The dead letters, as an operator."""
    return DeadLetterStore(world.database.engine("operator"))


def _batch_of(world: World, tenant: TenantId) -> BatchId:
    batch: BatchId = world.value("SELECT id FROM batches WHERE tenant_id = :t", t=tenant)
    return batch


def test_pages_of_all_tenants_are_newest_first(letters: DeadLetterStore, world: World) -> None:
    found: list[DeadLetter] = []
    after = None
    while page := letters.page(None, LetterFilter(), after=after, limit=5):
        found += page
        after = LetterId(page[-1].batch, page[-1].line)
    assert [letter.line for letter in found] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert [letter.died_at for letter in found] == sorted(
        (letter.died_at for letter in found), reverse=True
    )
    tenants = [letter.tenant for letter in found]
    assert tenants[::2] == [DEFAULT_TENANT] * 6
    assert tenants[1::2] == [tenants[1]] * 6 != tenants[::2]
    one = letters.page(tenants[1], LetterFilter(), after=None, limit=9)
    assert one == found[1::2]
    of_batch = LetterFilter(_batch_of(world, tenants[1]))
    assert letters.page(None, of_batch, after=None, limit=9) == one


def test_summary_groups_letters_of_all_tenants(letters: DeadLetterStore) -> None:
    long = ErrorGroup("timeout", LONG[:MESSAGE_LENGTH], 4)
    assert letters.summary(None, LetterFilter()) == LetterSummary(
        12, (ErrorGroup("timeout", "No answer", 4), long, ErrorGroup("worker_lost", None, 4))
    )
    open_ones = letters.summary(DEFAULT_TENANT, LetterFilter(state=LetterState.OPEN))
    assert (open_ones.total, open_ones.groups[-1]) == (5, ErrorGroup("worker_lost", None, 1))


@pytest.mark.parametrize(
    ("letter_filter", "total"),
    [
        pytest.param(LetterFilter(error_code="timeout"), 8, id="code"),
        pytest.param(LetterFilter(error_message="No answer"), 4, id="message"),
        pytest.param(
            LetterFilter(error_message=LONG[:MESSAGE_LENGTH]), 4, id="beginning of a message"
        ),
        pytest.param(LetterFilter(error_message="No"), 0, id="part of a message"),
        pytest.param(LetterFilter(error_code="none"), 0, id="unknown code"),
    ],
)
def test_summary_counts_what_the_list_holds(
    letters: DeadLetterStore, letter_filter: LetterFilter, total: int
) -> None:
    summary = letters.summary(None, letter_filter)
    assert summary.total == sum(group.letters for group in summary.groups) == total
    assert len(letters.page(None, letter_filter, after=None, limit=50)) == total


def test_count_stops_at_its_limit(
    letters: DeadLetterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant, limit in ((None, 7), (DEFAULT_TENANT, 3)):
        monkeypatch.setattr(dead_letters_store, "MAX_GROUPED", limit)
        assert letters.summary(tenant, LetterFilter()).total == limit
    assert not LetterSummary(9_999).is_capped
    assert LetterSummary(10_000).is_capped


def test_role_of_tenants_may_not_read_all_letters(world: World) -> None:
    letters = DeadLetterStore(world.database.engine("api"))
    assert letters.summary(None, LetterFilter()).total == 0
    assert letters.page(None, LetterFilter(), after=None, limit=9) == []
    assert letters.summary(DEFAULT_TENANT, LetterFilter()).total == 6
