"""Scrape configuration: every pod of the manifests, at its health port."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from lowtide.local.workloads import load, workloads
from lowtide.settings import Settings
from monitoring.generate import HERE
from tests.monitoring.programs import needs, run
from tests.monitoring.queries import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = HERE / "prometheus.yml"


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@needs("promtool")
def test_promtool_accepts_plain_configuration(tmp_path: Path) -> None:
    """Debian's build has no Kubernetes discovery: the check covers everything else."""
    config = _read(CONFIG)
    for job in config["scrape_configs"]:
        job["file_sd_configs"] = [{"files": ["targets.json"]}]
        assert job.pop("kubernetes_sd_configs")
    config["rule_files"] = [str(HERE / "rules" / "*.rules.yml")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "targets.json").write_text("[]")
    assert "SUCCESS" in run("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_operator_and_plain_prometheus_scrape_the_same() -> None:
    plain = _read(CONFIG)["scrape_configs"][0]
    monitor = _read(HERE / "podmonitors.yaml")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    operator_steps = [
        {
            {"sourceLabels": "source_labels", "targetLabel": "target_label"}.get(key, key): value
            for key, value in step.items()
        }
        for step in endpoint["relabelings"]
        if step.get("action") != "labeldrop"
    ]
    # The operator itself adds these two labels.
    plain_steps = [
        step
        for step in plain["relabel_configs"]
        if step.get("target_label") not in {"namespace", "pod"}
    ]
    assert operator_steps == plain_steps
    assert endpoint["honorLabels"] is plain["honor_labels"] is True
    (discovery,) = plain["kubernetes_sd_configs"]
    labels = monitor["selector"]["matchLabels"]
    assert discovery["selectors"][0]["label"] == ",".join(f"{k}={v}" for k, v in labels.items())


@needs("promtool")
def test_pods_of_workers_are_scraped_with_fleet_and_pool(tmp_path: Path) -> None:
    """A worker of an earlier release has no label; functions have no fleet."""
    job = _read(CONFIG)["scrape_configs"][0]
    del job["kubernetes_sd_configs"]
    job["file_sd_configs"] = [{"files": ["targets.json"]}]
    pods = {
        "10.0.0.1": ("infer-spot", "default"),
        "10.0.0.2": ("infer-dedicated-qwen-8b", "qwen-8b"),
        "10.0.0.3": ("infer-spot", ""),
        "10.0.0.4": ("schedule", ""),
    }
    targets = [
        {
            "targets": [address],
            "labels": {
                "__meta_kubernetes_pod_ip": address,
                "__meta_kubernetes_pod_container_name": "worker",
                "__meta_kubernetes_pod_label_app_kubernetes_io_name": name,
                "__meta_kubernetes_pod_label_lowtide_dev_fleet": fleet,
            },
        }
        for address, (name, fleet) in pods.items()
    ]
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": [job]}))
    (tmp_path / "targets.json").write_text(json.dumps(targets))
    # promtool always waits that long, for targets that it reads at once.
    command = ("promtool", "check", "service-discovery", "--timeout=3s")
    labels = [one["labels"] for one in json.loads(run(*command, config, job["job_name"]))]
    assert {one["__address__"]: (one.get("fleet"), one.get("pool")) for one in labels} == {
        "10.0.0.1:8081": ("default", "spot"),
        "10.0.0.2:8081": ("qwen-8b", "dedicated"),
        "10.0.0.3:8081": ("default", "spot"),
        "10.0.0.4:8081": (None, None),
    }


def test_every_workload_is_scraped() -> None:
    monitor = _read(HERE / "podmonitors.yaml")["spec"]
    keep = monitor["podMetricsEndpoints"][0]["relabelings"][0]
    templates = [
        document["spec"]["template"]
        for path in (ROOT / "knative" / "base").rglob("*.yaml")
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if document["kind"] in {"Service", "Deployment"} and "template" in document["spec"]
    ]
    assert len(templates) == len(workloads(load(ROOT)))
    container_names = set(keep["regex"].split("|"))
    required_labels = monitor["selector"]["matchLabels"].items()
    (expression,) = monitor["selector"]["matchExpressions"]
    for template in templates:
        assert template["spec"]["containers"][0]["name"] in container_names
        labels = template["metadata"]["labels"]
        assert labels.items() >= required_labels
        assert labels[expression["key"]] in expression["values"]
    (port,) = {
        step["replacement"].rpartition(":")[2]
        for step in monitor["podMetricsEndpoints"][0]["relabelings"]
        if step.get("targetLabel") == "__address__"
    }
    assert int(port) == Settings.model_fields["health_port"].default


def test_kustomization_has_every_dashboard() -> None:
    (config_map,) = _read(HERE / "kustomization.yaml")["configMapGenerator"]
    committed = (HERE / "dashboards" / "json").glob("*.json")
    assert set(config_map["files"]) == {f"dashboards/json/{path.name}" for path in committed}


@needs("kubectl")
def test_kubectl_renders_kustomization() -> None:
    documents = list(yaml.safe_load_all(run("kubectl", "kustomize", HERE)))
    kinds = {document["kind"]: document for document in documents}
    assert sorted(kinds) == ["ConfigMap", "PodMonitor", "PrometheusRule"]
    assert {document["metadata"]["namespace"] for document in documents} == {"monitoring"}
    assert kinds["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(kinds["ConfigMap"]["data"]) == 7
