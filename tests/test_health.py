"""Health and metrics on a port of their own."""

from __future__ import annotations

import httpx
import pytest

from lowtide import health
from lowtide.domain.errors import Unavailable
from lowtide.local.ports import HOST, free_port


class Readiness:
    """Ready, until it is told otherwise."""

    away = False

    def __call__(self) -> None:
        if self.away:
            raise Unavailable("The database does not answer.")


@pytest.fixture(scope="module")
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture(scope="module")
def address(readiness: Readiness) -> str:
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOST", HOST)
        health.serve(port, is_ready=readiness)
    return f"http://{HOST}:{port}"


@pytest.mark.parametrize(
    ("away", "path", "status", "text"),
    [
        (False, "/health/live", 200, "ok"),
        (False, "/health/ready", 200, "ok"),
        (True, "/health/live", 200, "ok"),
        (True, "/health/ready", 503, "The database does not answer."),
        (True, "/metrics", 200, "lowtide_build_info{"),
        (False, "/", 404, "not found"),
    ],
)
def test_answers(
    readiness: Readiness, address: str, *, away: bool, path: str, status: int, text: str
) -> None:
    readiness.away = away
    answer = httpx.get(address + path, trust_env=False)
    assert answer.status_code == status
    assert text in answer.text
