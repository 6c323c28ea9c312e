"""Queries in addresses of the page of dead letters."""

from __future__ import annotations

from uuid import UUID

import pytest

from lowtide.core.errors import InvalidRequest, NotFound
from lowtide.core.ids import BatchId, TenantId, format_batch_id
from lowtide.dead_letters.model import LetterFilter, LetterState
from portal.queries import LetterQuery

BATCH = BatchId(UUID(int=7))
TENANTS = {TenantId(UUID(int=1)): "acme", TenantId(UUID(int=2)): "zoo"}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({}, LetterFilter(state=LetterState.OPEN), id="open by default"),
        pytest.param({"state": "all"}, LetterFilter(), id="all"),
        pytest.param(
            {
                "batch_id": f" {format_batch_id(BATCH)} ",
                "error_code": "a&b=c",
                "error_message": " No answer & more",
                "state": "requeued",
            },
            LetterFilter(BATCH, "a&b=c", LetterState.REQUEUED, " No answer & more"),
            id="every filter",
        ),
    ],
)
def test_query_survives_its_address(parameters: dict[str, str], expected: LetterFilter) -> None:
    from urllib.parse import parse_qsl, urlsplit

    query = LetterQuery.read(parameters)
    assert query.filter() == expected
    address = urlsplit(query.address("/dead-letters"))
    assert LetterQuery.read(dict(parse_qsl(address.query))) == query


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"batch_id": "<script>"}, id="invalid batch id"),
        pytest.param({"state": "gone"}, id="invalid state"),
        pytest.param({"error_code": "\x00"}, id="NUL character"),
        pytest.param({"error_message": "\x00"}, id="NUL character in the message"),
    ],
)
def test_invalid_parameter_raises_invalid_request(parameters: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        LetterQuery.read(parameters).filter()


def test_tenant_is_the_named_or_only_one() -> None:
    _, zoo = TENANTS
    assert LetterQuery().chosen_tenant(TENANTS) is None, "all tenants"
    assert LetterQuery(tenant="zoo").chosen_tenant(TENANTS) == zoo
    with pytest.raises(NotFound):
        LetterQuery(tenant="other").chosen_tenant(TENANTS)
    with pytest.raises(NotFound):
        LetterQuery().chosen_tenant({})
    assert LetterQuery(tenant="").chosen_tenant({zoo: ""}) == zoo, (
        "signed in with a key of the tenant"
    )
