from __future__ import annotations

import pytest

from lowtide.local import dispatcher
from lowtide.local.options import BadManifest


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("PT0.5S", 0.5), ("PT10M", 600), ("PT1H30M", 5400), ("P1DT2H", 93_600), ("P2D", 172_800)],
)
def test_iso_8601_duration_is_parsed(text: str, seconds: float) -> None:
    assert dispatcher.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "P", "PT", "5s", "PT5", "P1Y", "P1W", "pt5s", "-PT5S"])
def test_unsupported_duration_is_refused(text: str) -> None:
    with pytest.raises(BadManifest, match="ISO 8601"):
        dispatcher.parse(text)
