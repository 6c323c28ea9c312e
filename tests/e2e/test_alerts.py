"""A real alert, from a process that stops answering to Alertmanager, and its end."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.waiting import until
from tests.monitoring.programs import MONITORING, needs
from tests.monitoring.queries import alerts, recordings

if TYPE_CHECKING:
    from tests.e2e.stacks import LocalStack

pytestmark = needs(*MONITORING)


def _get(address: str, **parameters: str) -> Any:
    return httpx.get(address, params=parameters, timeout=10).raise_for_status().json()


@pytest.fixture(scope="module")
def prometheus(stack: LocalStack) -> str:
    return f"{stack.status()['prometheus_url']}/api/v1"


@pytest.fixture(scope="module")
def alertmanager(stack: LocalStack) -> str:
    return f"{stack.status()['alertmanager_url']}/api/v2"


def test_every_process_is_scraped_with_the_labels_of_a_pod(
    stack: LocalStack, prometheus: str
) -> None:
    expected = {one.name for one in stack.programs().values() if one.health_port is not None}

    def healthy() -> dict[str, dict[str, str]]:
        found = _get(f"{prometheus}/targets")["data"]["activeTargets"]
        return {one["labels"]["pod"]: one["labels"] for one in found if one["health"] == "up"}

    until(lambda: healthy().keys() >= expected, "all are scraped", within=30)
    assert healthy()["schedule"].items() >= {"namespace": "local", "function": "schedule"}.items()


def test_prometheus_evaluates_every_rule(prometheus: str) -> None:
    def states() -> dict[str, str]:
        groups = _get(f"{prometheus}/rules")["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    until(lambda: set(states().values()) == {"ok"}, "all are evaluated", within=30)
    assert states().keys() == alerts().keys() | recordings()


def test_an_alert_fires_and_resolves(stack: LocalStack, prometheus: str, alertmanager: str) -> None:
    """The portal stands still: Prometheus sees it, Alertmanager tells, and forgets when it goes on."""
    portal = stack.program("portal")
    assert portal.pid is not None

    def told() -> list[dict[str, Any]]:
        found = _get(f"{alertmanager}/alerts", active="true")
        return [one for one in found if one["labels"]["alertname"] == "LowtidePortalDown"]

    until(
        lambda: _get(f"{prometheus}/query", query='up{function="portal"} == 1')["data"]["result"],
        "the portal is scraped",
        within=30,
    )
    assert not told()
    os.killpg(portal.pid, signal.SIGSTOP)
    try:
        (alert,) = until(told, "the alert fires", within=40, every=0.25)
    finally:
        os.killpg(portal.pid, signal.SIGCONT)
    assert alert["labels"]["severity"] == "critical"
    assert alert["labels"]["namespace"] == "local"
    assert alert["annotations"]["summary"] == "The portal of local does not answer"
    assert alert["annotations"]["runbook_url"].endswith("docs/operations.md#lowtideportaldown")
    assert {receiver["name"] for receiver in alert["receivers"]} == {"page", "chat"}
    until(lambda: not told(), "the alert resolves", within=40, every=0.25)
