"""Authentication of callers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import Unauthenticated
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.tenants.callers import Authenticator
from tests.conftest import API_KEY, PEPPER

if TYPE_CHECKING:
    from tests.conftest import Database


def test_key_identifies_tenant(database: Database) -> None:
    authenticator = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    assert authenticator.caller(f"Bearer {API_KEY}").tenant == DEFAULT_TENANT


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
def test_invalid_header_is_unauthenticated(database: Database, header: str | None) -> None:
    authenticator = Authenticator(database.engine("api"), pepper=PEPPER, anonymous=None)
    with pytest.raises(Unauthenticated):
        authenticator.caller(header)


def test_anonymous_caller_acts_for_configured_tenant(database: Database) -> None:
    authenticator = Authenticator(database.engine("api"), pepper=PEPPER, anonymous="default")
    assert authenticator.caller(None).tenant == DEFAULT_TENANT
    with pytest.raises(Unauthenticated):
        authenticator.caller("Bearer lt_wrong")
