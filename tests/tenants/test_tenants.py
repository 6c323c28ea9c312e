"""Who may call, and what a tenant can see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import Unauthenticated
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.tenants.callers import Authenticator
from tests.conftest import API_KEY, PEPPER

if TYPE_CHECKING:
    from tests.conftest import Database


def test_the_key_names_the_tenant(database: Database) -> None:
    tenants = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    assert tenants.caller(f"Bearer {API_KEY}").tenant == DEFAULT_TENANT


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(None, id="no header"),
        pytest.param("", id="empty"),
        pytest.param("Bearer ", id="no key"),
        pytest.param("Bearer lt_wrong", id="wrong key"),
        pytest.param(f"Basic {API_KEY}", id="wrong scheme"),
        pytest.param(API_KEY, id="no scheme"),
    ],
)
def test_anything_else_is_refused(database: Database, header: str | None) -> None:
    tenants = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    with pytest.raises(Unauthenticated):
        tenants.caller(header)


def test_a_named_tenant_may_be_anonymous(database: Database) -> None:
    tenants = Authenticator(database.engine("api"), pepper=PEPPER, anonymous="default")
    assert tenants.caller(None).tenant == DEFAULT_TENANT
    with pytest.raises(Unauthenticated):
        tenants.caller("Bearer lt_wrong")
