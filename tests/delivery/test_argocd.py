"""The Argo CD project and applications match the overlays they apply."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.overlays import rendered

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = {one["metadata"]["name"]: one for one in rendered("argocd")}
PROJECT: dict[str, Any] = OBJECTS["lowtide"]["spec"]
ENVIRONMENTS = ["dev", "stage", "prod"]


def application(environment: str) -> dict[str, Any]:
    spec: dict[str, Any] = OBJECTS[f"lowtide-{environment}"]["spec"]
    return spec


def allowed(*lists: str) -> set[tuple[str, str]]:
    return {(one["group"], one["kind"]) for name in lists for one in PROJECT[name]}


@pytest.mark.parametrize("overlay", [*ENVIRONMENTS, "prod-gpu"])
def test_project_allows_every_kind_of_overlay(overlay: str) -> None:
    kinds = {
        (document["apiVersion"].rpartition("/")[0], document["kind"])
        for document in rendered(f"knative/overlays/{overlay}")
    }
    assert kinds <= allowed("clusterResourceWhitelist", "namespaceResourceWhitelist")


def test_project_allows_every_kind_of_monitoring() -> None:
    folder = ROOT / "monitoring"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    kinds = {
        (document["apiVersion"].rpartition("/")[0], document["kind"])
        for name in kustomization["resources"]
        for document in yaml.safe_load_all((folder / name).read_text())
    }
    assert kinds <= allowed("namespaceResourceWhitelist")
    template = OBJECTS["lowtide-monitoring"]["spec"]["template"]["spec"]
    assert template["destination"]["namespace"] == kustomization["namespace"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_application_points_to_overlay_within_project(environment: str) -> None:
    spec = application(environment)
    assert (ROOT / spec["source"]["path"] / "kustomization.yaml").exists()
    assert spec["source"]["repoURL"] in PROJECT["sourceRepos"]
    assert spec["destination"] in PROJECT["destinations"]
    namespaces = {
        document["metadata"].get("namespace", spec["destination"]["namespace"])
        for document in rendered(spec["source"]["path"])
    }
    assert namespaces == {spec["destination"]["namespace"]}


@pytest.mark.parametrize(
    ("environment", "automated"), [("dev", True), ("stage", True), ("prod", False)]
)
def test_only_production_syncs_manually(environment: str, automated: bool) -> None:
    assert ("automated" in application(environment)["syncPolicy"]) is automated


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_replicas_and_traffic_are_excluded_from_sync(environment: str) -> None:
    spec = application(environment)
    ignored = {
        (one["kind"], one.get("name"), pointer)
        for one in spec["ignoreDifferences"]
        for pointer in one["jsonPointers"]
    }
    scaled = {
        ("Deployment", document["spec"]["scaleTargetRef"]["name"], "/spec/replicas")
        for document in rendered(spec["source"]["path"])
        if document["kind"] == "ScaledObject"
    }
    assert scaled
    assert ignored == scaled | {("Service", None, "/spec/traffic")}
    assert "RespectIgnoreDifferences=true" in spec["syncPolicy"]["syncOptions"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_migration_syncs_after_prerequisites_and_before_workloads(
    environment: str, tmp_path: Path
) -> None:
    for folder in ("knative", "keda", "argocd"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    source = application(environment)["source"]
    path = tmp_path / source["path"]
    overlay = yaml.safe_load((path / "kustomization.yaml").read_text())
    # Argo CD runs `kustomize edit add component`.
    overlay.setdefault("components", []).extend(
        ["../../components/external-secrets", *source["kustomize"]["components"]]
    )
    (path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    waves: dict[str, set[int]] = {}
    replicas: dict[str, int | None] = {}
    for document in rendered(source["path"], tmp_path):
        if document["kind"] == "Deployment":
            replicas[document["metadata"]["name"]] = document["spec"].get("replicas")
        annotations = document["metadata"].get("annotations", {})
        wave = int(annotations.get("argocd.argoproj.io/sync-wave", "0"))
        waves.setdefault(document["kind"], set()).add(wave)
    (migration,) = waves["Job"]
    for kind in ("Namespace", "ServiceAccount", "NetworkPolicy", "ConfigMap", "ExternalSecret"):
        assert max(waves[kind]) < migration, kind
    assert min(waves["Service"] | waves["Deployment"]) > migration
    # KEDA starts the first worker: a sync waits for none, and stops none while it starts.
    assert replicas == {"infer-spot": 0, "infer-dedicated": 0, "portal": 1}
    assert waves["ScaledObject"] == waves["TriggerAuthentication"] == waves["Deployment"]
