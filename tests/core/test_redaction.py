"""Masking of secrets in log text, in linear time."""

from __future__ import annotations

import pytest

from lowtide.core.redaction import masked

LENGTH = 300_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "part",
    ["x", "a.b-c+", "a://", "a://b:", ":", "password ", "authorization: w", "bearer ", 'pass\\"'],
)
def test_long_line_is_masked_in_linear_time(part: str) -> None:
    line = part * (LENGTH // len(part)) + " postgresql://ana:hunter2@db/x"
    assert masked(line).endswith("://ana:***@db/x")


def test_url_scheme_may_follow_any_text() -> None:
    assert masked("1redis://:pw@h url=http://a:b@c") == "1redis://:***@h url=http://a:***@c"
