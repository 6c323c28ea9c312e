"""Alert routing, evaluated by Alertmanager's own code."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from lowtide.local.monitoring import quiet_routes
from lowtide.local.ports import free_port
from monitoring.generate import HERE
from tests.monitoring.programs import needs, run
from tests.monitoring.queries import alerts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = HERE / "alertmanager" / "alertmanager.yml"
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
PATIENCE = 20.0
BY_SEVERITY = {"critical": "page,chat", "warning": "chat", "info": "digest"}

with_amtool = needs("amtool")


def _receivers(**labels: str) -> str:
    words = [f"{name}={value}" for name, value in labels.items()]
    return run("amtool", "config", "routes", "test", "--config.file", CONFIG, *words).strip()


def _config() -> Any:
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


@with_amtool
def test_configuration_is_valid() -> None:
    assert "SUCCESS" in run("amtool", "check-config", CONFIG)


@with_amtool
@pytest.mark.parametrize("severity", BY_SEVERITY)
def test_severity_selects_receivers(severity: str) -> None:
    assert _receivers(alertname="LowtideAnything", severity=severity) == BY_SEVERITY[severity]


@with_amtool
@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        ({"alertname": "NodeDown", "severity": "critical"}, "nobody"),
        ({"alertname": "LowtideAnything"}, "chat"),
    ],
    ids=["alert of another system", "no severity"],
)
def test_unmatched_alert_uses_fallback_receiver(labels: dict[str, str], receivers: str) -> None:
    assert _receivers(**labels) == receivers


def test_every_rule_severity_is_routed() -> None:
    assert {rule["labels"]["severity"] for rule in alerts().values()} <= set(BY_SEVERITY)


def test_inhibition_names_existing_alerts() -> None:
    named = {
        name
        for rule in _config()["inhibit_rules"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
        if matcher.startswith("alertname") and ".*" not in matcher
        for name in matcher.split('"')[1].split("|")
    }
    assert named
    assert named <= set(alerts())


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[httpx.Client]:
    """Run Alertmanager with our inhibitions, and receivers that do not notify."""
    config, port = tmp_path / "alertmanager.yml", free_port()
    config.write_text(yaml.safe_dump(quiet_routes(_config(), "1s")))
    command = (
        str(ALERTMANAGER),
        f"--config.file={config}",
        f"--storage.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    )
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v2", trust_env=False) as client,
    ):
        yield client
        process.terminate()


def _inhibited(client: httpx.Client, *posted: dict[str, str]) -> list[tuple[str, str]]:
    """Post alerts; return the name and the fleet of those that are inhibited, once any is."""
    body = [{"labels": {"namespace": "lowtide", "pool": "spot", **labels}} for labels in posted]
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            client.post("/alerts", json=body).raise_for_status()
            seen = client.get("/alerts").raise_for_status().json()
        except httpx.TransportError:
            seen = []
        if inhibited := [one["labels"] for one in seen if one["status"]["inhibitedBy"]]:
            return [(labels["alertname"], labels["fleet"]) for labels in inhibited]
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


@pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager is not installed")
@pytest.mark.parametrize(
    ("cause", "consequence"),
    [
        ("LowtidePoolPaused", "LowtideQueueOld"),
        ("LowtidePoolPaused", "LowtideAutoscalerAtMax"),
        ("LowtideNoWorkers", "LowtideQueueOld"),
        ("LowtideQueueStuck", "LowtideQueueOld"),
        ("LowtideEngineRejecting", "LowtideEngineFailing"),
        ("LowtideEngineUnavailable", "LowtideQueueStuck"),
    ],
)
def test_cause_inhibits_consequence_in_its_fleet_alone(
    alertmanager: httpx.Client, cause: str, consequence: str
) -> None:
    fleets = ("h100", "l4")
    consequences = ({"alertname": consequence, "fleet": fleet} for fleet in fleets)
    inhibited = _inhibited(alertmanager, {"alertname": cause, "fleet": "l4"}, *consequences)
    assert inhibited == [(consequence, "l4")]


def test_alerts_on_tick_metrics_carry_tick_label() -> None:
    """Alerts on metrics of workers and the API carry no `from`."""
    from_tick = {name for name, rule in alerts().items() if rule["labels"].get("from") == "tick"}
    assert from_tick == {
        "LowtideAuditEventsNotTaken", "LowtideAutoscalerAtMax", "LowtideBatchAtRisk",
        "LowtideEventsNotTaken", "LowtideNoWorkers", "LowtidePoolPaused", "LowtideQueueOld",
        "LowtideQueueStuck", "LowtideQuotaAlmostUsed", "LowtideRetentionBehind",
    }  # fmt: skip


def test_configuration_has_no_secret_or_host() -> None:
    text = CONFIG.read_text(encoding="utf-8")
    assert "://" not in text
    for receiver in _config()["receivers"]:
        for kind, configs in receiver.items():
            if kind != "name":
                assert all(any(key.endswith("_file") for key in one) for one in configs)
