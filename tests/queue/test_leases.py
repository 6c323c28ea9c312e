"""Storms: so many lost leases at once that no request is to blame."""

from __future__ import annotations

import pytest

from lowtide.queue.store import is_storm


@pytest.mark.parametrize(
    ("lost", "living", "storm"),
    [
        (0, 0, False), (1, 0, False), (4, 0, False), (5, 0, True), (5, 5, True), (5, 6, False),
        (100, 99, True), (100, 101, False),
    ],
)  # fmt: skip
def test_storm_requires_five_lost_leases_and_half_of_workers(
    lost: int, living: int, *, storm: bool
) -> None:
    assert is_storm(lost, living) is storm
