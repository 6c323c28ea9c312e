"""Pages accept any query: from a bookmark, a shared link or a typing error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.ids import format_batch_id
from tests.portal.letters import batch_with_dead_letters
from tests.portal.seeds import SeedBatch, add_batch, empty
from tests.worlds import World

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.portal.conftest import Portal

PATHS = (
    "/", "/batches", "/batches/{batch}", "/upload", "/dead-letters", "/queues", "/health",
    "/tenants", "/keys", "/audit", "/sign-in",
)  # fmt: skip
NAMES = (
    "after", "status", "sla", "user", "tenant", "order", "batch_id", "error_code", "state", "which",
    "line", "custom_id", "range", "actor", "action", "name", "q", "sort", "page", "limit", "problem",
    "subject", "key", "revoked", "since", "until", "text",
)  # fmt: skip
VALUES = (
    "",
    "nobody-has-this",
    "%00a%00",
    "%ff%fe%E2%80%A8",
    "%3Cscript%3Ealert(1)%3C/script%3E%22'",
    "x" * 1000,
    "-1",
    "9" * 40,
    "%D9%A1",
    "a" + "0" * 32,
    "batch_" + "0" * 32,
    "99999-01-01T00:00:00Z,1",
    "completed,,failed,x%25_%5C",
)


@pytest.fixture
def batch(shared: Database, portal: Portal) -> str:
    """Two batches; returns the id of the one with a dead letter."""
    empty(shared.engine("owner"), "dead_letters, requests, results, files CASCADE")
    add_batch(shared.engine("worker"), SeedBatch())
    return format_batch_id(batch_with_dead_letters(World(shared), portal, ["a", "b"], dead=(1,)))


@pytest.mark.parametrize("path", PATHS)
def test_page_accepts_any_query(portal: Portal, batch: str, path: str) -> None:
    with portal.client() as client:
        for value in VALUES:
            query = "&".join(f"{name}={value}" for name in NAMES)
            answer = client.get(f"{path.format(batch=batch)}?{query}", follow_redirects=False)
            assert answer.status_code in {200, 303, 307}, value
            assert "Page failed to load" not in answer.text, value


@pytest.mark.parametrize("path", ["/batches", "/dead-letters", "/keys", "/audit", "/upload"])
def test_page_of_unknown_tenant_names_it(portal: Portal, batch: str, path: str) -> None:
    assert batch
    with portal.client() as client:
        answer = client.get(f"{path}?tenant=nobody-has-this")
    assert answer.status_code == 200
    if path != "/upload":
        assert "nobody-has-this" in answer.text
