"""Alert routing, evaluated by Alertmanager's own code."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from monitoring.generate import HERE
from tests.monitoring.programs import needs, run
from tests.monitoring.queries import alerts

CONFIG = HERE / "alertmanager" / "alertmanager.yml"
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


def test_alerts_on_tick_metrics_carry_tick_label() -> None:
    """Alerts on metrics of workers and the API carry no `from`."""
    from_tick = {name for name, rule in alerts().items() if rule["labels"].get("from") == "tick"}
    assert from_tick == {
        "LowtideAutoscalerAtMax", "LowtideBatchAtRisk", "LowtideEventsNotTaken", "LowtideNoWorkers",
        "LowtidePoolPaused", "LowtideQueueOld", "LowtideQueueStuck", "LowtideRetentionBehind",
    }  # fmt: skip


def test_configuration_has_no_secret_or_host() -> None:
    text = CONFIG.read_text(encoding="utf-8")
    assert "://" not in text
    for receiver in _config()["receivers"]:
        for kind, configs in receiver.items():
            if kind != "name":
                assert all(any(key.endswith("_file") for key in one) for one in configs)
