"""The fleets on the landing page, without a browser."""

from __future__ import annotations

from portal.pages.landing import fleet_row
from tests.status.test_watch import BY_FLEET


def test_rows_have_models_load_and_workers_of_each_fleet() -> None:
    rows = [fleet_row(name, fleet) for name, fleet in BY_FLEET.by_fleet()]
    assert rows == [
        ("large", "llama-70b", "43", "0", "0", "0", "spot", "0"),
        ("old", "no longer declared", "9", "0", "0", "0", "—", "0"),
        ("small", "no longer declared", "46", "0", "2", "0", "—", "0"),
    ]
