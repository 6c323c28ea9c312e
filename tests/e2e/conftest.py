"""Whole stacks for tests that use the product like a user."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.stacks import LocalStack, running
from tests.monitoring.programs import MONITORING, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from openai import OpenAI

    StackFactory = Callable[[Mapping[str, str]], LocalStack]

SETTINGS = {
    "LOWTIDE_SIMULATED_INTERRUPTION_RATE": "0.1",
    "LOWTIDE_SIMULATED_LATENCY": "0.05",
    "LOWTIDE_WORKER_POLL_CAP": "1",
}
SMALL_FILE = 100_000
QUICK = {"test_main_job", "test_bad_input", "test_curl"}
_LOG_LINES = 80


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test outside the `QUICK` modules as slow."""
    for item in items:
        ours = item.path.is_relative_to(__file__.rpartition("/")[0])
        if ours and item.path.stem not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of each stack's log to a failure report."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, LocalStack):
                tail = "\n".join(value.log().splitlines()[-_LOG_LINES:])
                report.sections.append((f"the end of {name}'s log", tail))
    return report


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    """The stack that all tests share: a simulated engine interrupts every tenth spot attempt.

    Prometheus and Alertmanager run beside it where they are installed.
    """
    with running(SETTINGS, monitoring=not missing(*MONITORING)) as shared:
        yield shared


@pytest.fixture(scope="session")
def anonymous_stack() -> Iterator[LocalStack]:
    """A stack with anonymous access, a small file limit and short leases.

    Its broker delivers synchronously and stores no events.
    """
    settings = SETTINGS | {
        "LOWTIDE_ANONYMOUS_TENANT": "default",
        "LOWTIDE_MAX_FILE_BYTES": str(SMALL_FILE),
        "LOWTIDE_LEASE_DURATION": "3",
        "LOWTIDE_DATABASE_TIMEOUT": "5",
    }
    with running(settings, synchronous_broker=True) as shared:
        yield shared


@pytest.fixture
def client(stack: LocalStack) -> OpenAI:
    """The OpenAI client of the shared stack."""
    return stack.client


@pytest.fixture(scope="module")
def make_stack() -> Iterator[StackFactory]:
    """Start a stack with its own settings; it runs until the module's last test."""
    with ExitStack() as block:
        yield lambda settings: block.enter_context(running(settings))
