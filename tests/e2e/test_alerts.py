"""An alert from a frozen process through Prometheus to Alertmanager, and its resolution."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.waiting import until
from tests.monitoring.programs import MONITORING, needs
from tests.monitoring.queries import alerts, boards, expressions_of, filled, recordings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.stacks import LocalStack

pytestmark = needs(*MONITORING)


@dataclass(frozen=True)
class Api:
    """The HTTP API of Prometheus or Alertmanager."""

    client: httpx.Client
    base: str

    def get(self, path: str, **parameters: str) -> Any:
        return self.client.get(self.base + path, params=parameters).raise_for_status().json()


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def prometheus(stack: LocalStack, http: httpx.Client) -> Api:
    return Api(http, f"{stack.status()['prometheus_url']}/api/v1/")


@pytest.fixture(scope="module")
def alertmanager(stack: LocalStack, http: httpx.Client) -> Api:
    return Api(http, f"{stack.status()['alertmanager_url']}/api/v2/")


def test_every_process_is_scraped_with_pod_labels(stack: LocalStack, prometheus: Api) -> None:
    expected = {one.name for one in stack.programs().values() if one.health_port is not None}

    def healthy() -> dict[str, dict[str, str]]:
        targets = prometheus.get("targets")["data"]["activeTargets"]
        return {one["labels"]["pod"]: one["labels"] for one in targets if one["health"] == "up"}

    until(lambda: healthy().keys() >= expected, "every process is scraped", within=30)
    assert healthy()["schedule"].items() >= {"namespace": "local", "function": "schedule"}.items()


def test_prometheus_evaluates_every_rule(prometheus: Api) -> None:
    def states() -> dict[str, str]:
        groups = prometheus.get("rules")["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    until(lambda: set(states().values()) == {"ok"}, "every rule is evaluated", within=30)
    # Those of `monitoring/cells` are for a Prometheus of a cell.
    own = {name for name in recordings() if not name.startswith("lowtide_cell:")}
    assert states().keys() == alerts().keys() | own


def test_prometheus_answers_every_panel_query(prometheus: Api) -> None:
    depth = filled(
        'sum(namespace_fleet_pool:queue_depth:max{namespace=~"$namespace",fleet=~"$fleet"})'
    )

    def answer(expression: str) -> Any:
        response = prometheus.get("query", query=filled(expression))
        return response["data"]["result"] if response["status"] == "success" else None

    queries = {expression for board in boards().values() for _, expression in expressions_of(board)}
    assert depth in map(filled, queries)
    until(lambda: answer(depth), "the first tick is scraped", within=30)
    assert not {expression for expression in queries if answer(expression) is None}


def test_alert_fires_and_resolves(stack: LocalStack, prometheus: Api, alertmanager: Api) -> None:
    """A frozen portal raises an alert in Alertmanager; a resumed one resolves it."""
    portal = stack.program("portal")
    assert portal.pid is not None

    def firing() -> list[dict[str, Any]]:
        alerts_ = alertmanager.get("alerts", active="true")
        return [one for one in alerts_ if one["labels"]["alertname"] == "LowtidePortalDown"]

    until(
        lambda: prometheus.get("query", query='up{function="portal"} == 1')["data"]["result"],
        "the portal is scraped",
        within=30,
    )
    assert not firing()
    os.killpg(portal.pid, signal.SIGSTOP)
    try:
        (alert,) = until(firing, "the alert fires", within=40, every=0.25)
    finally:
        os.killpg(portal.pid, signal.SIGCONT)
    assert alert["labels"]["severity"] == "critical"
    assert alert["labels"]["namespace"] == "local"
    assert alert["annotations"]["summary"] == "The portal in local is not responding"
    assert alert["annotations"]["runbook_url"].endswith("docs/operations.md#lowtideportaldown")
    assert {receiver["name"] for receiver in alert["receivers"]} == {"page", "chat"}
    until(lambda: not firing(), "the alert resolves", within=40, every=0.25)
