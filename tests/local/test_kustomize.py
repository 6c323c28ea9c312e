from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from lowtide.local.autoscaler import limits_of
from lowtide.local.manifests import (
    ConfigMap,
    CoreService,
    Deployment,
    HttpRoute,
    KnativeService,
    PingSource,
    ScaledObject,
    Trigger,
)
from lowtide.local.options import BadManifest
from lowtide.local.workloads import Manifests, Workload, load, workloads
from lowtide.settings import unknown_variables

from .conftest import ROOT, write_overlay

if TYPE_CHECKING:
    from pathlib import Path

FUNCTIONS = {"upload", "create-batch", "cancel-batch", "read", "split", "finalize", "schedule"}


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return load(ROOT)


@pytest.fixture(scope="module")
def by_name(manifests: Manifests) -> dict[str, Workload]:
    return {workload.name: workload for workload in workloads(manifests)}


def test_overlay_has_every_function_worker_and_portal(by_name: dict[str, Workload]) -> None:
    assert set(by_name) == {*FUNCTIONS, "infer-spot", "infer-dedicated", "portal"}
    assert all(by_name[name].replicas == 1 for name in {*FUNCTIONS, "portal"})
    assert by_name["infer-spot"].scaled
    assert by_name["infer-spot"].replicas == 0


def test_kustomizations_list_every_yaml_file() -> None:
    for kustomization in [
        *ROOT.glob("knative/**/kustomization.yaml"),
        *ROOT.glob("keda/kust*.yaml"),
    ]:
        folder = kustomization.parent
        for path in folder.rglob("*.yaml"):
            # Administrators apply the patches of Knative's own ConfigMaps; fleets.yaml is no object.
            if (
                path.name.startswith(("kustomization", "config-", "fleets.yaml"))
                or _nearest(path) != folder
                or path.is_relative_to(ROOT / "knative/examples")  # never applied as they are
            ):
                continue
            assert str(path.relative_to(folder)) in kustomization.read_text(), path


def _nearest(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / "kustomization.yaml").exists())


def test_triggers_pings_and_routes_have_existing_targets(manifests: Manifests) -> None:
    services = {s.metadata.name for s in manifests.all(KnativeService)}
    core = {s.metadata.name for s in manifests.all(CoreService)}
    for trigger in manifests.all(Trigger):
        reference = trigger.spec.subscriber.ref
        assert reference is not None
        assert reference.name in (core if reference.api_version == "v1" else services)
    for ping in manifests.all(PingSource):
        assert ping.spec.sink.ref is not None
        assert ping.spec.sink.ref.name in services
    for route in manifests.all(HttpRoute):
        for rule in route.spec.rules:
            assert rule.service in services


@pytest.mark.parametrize("name", sorted(FUNCTIONS | {"infer-spot", "infer-dedicated"}))
def test_function_sources_exist_and_settings_are_known(
    by_name: dict[str, Workload], manifests: Manifests, name: str
) -> None:
    environment = {v.name: v.value for v in by_name[name].container.env}
    assert (ROOT / environment["FUNCTION_SOURCE"]).exists()
    config = {k: v for m in manifests.all(ConfigMap) for k, v in m.data.items()}
    assert unknown_variables(environment | config) == []


def test_threads_and_pool_size_equal_concurrency(manifests: Manifests) -> None:
    for service in manifests.all(KnativeService):
        name = service.metadata.name
        document = yaml.safe_load((ROOT / f"knative/base/functions/{name}.yaml").read_text())
        environment = {v.name: v.value for v in service.spec.template.spec.containers[0].env}
        limit = str(document["spec"]["template"]["spec"]["containerConcurrency"])
        assert {environment["THREADS"], environment["LOWTIDE_DATABASE_POOL_SIZE"]} == {limit}


def test_scheduler_settings_match_scalers_and_ping(manifests: Manifests) -> None:
    config = {k: v for m in manifests.all(ConfigMap) for k, v in m.data.items()}
    for scaler in manifests.all(ScaledObject):
        pool = scaler.metadata.name.removeprefix("infer-").upper()
        metadata = scaler.spec.triggers[0].metadata
        assert config[f"LOWTIDE_{pool}_REPLICAS"] == str(scaler.spec.max_replica_count)
        assert config[f"LOWTIDE_{pool}_ROWS_PER_REPLICA"] == metadata["targetQueryValue"]
        limit = scaler.spec.max_replica_count * int(metadata["targetQueryValue"])
        assert limits_of(metadata["query"]) == [limit] * 2
    (ping,) = manifests.all(PingSource)
    assert ping.spec.schedule == f"*/{config['LOWTIDE_TICK']} * * * * *"


def test_only_scaled_deployments_omit_replicas(manifests: Manifests) -> None:
    scaled = {scaler.spec.scale_target_ref.name for scaler in manifests.all(ScaledObject)}
    for deployment in manifests.all(Deployment):
        assert (deployment.spec.replicas is None) == (deployment.metadata.name in scaled)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("kind: Service\napiVersion: v1\nspec: {}\n", r"a\.yaml: .*`metadata`"),
        ("kind: [", r"a\.yaml: while parsing"),
        (
            "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\ndata: {a: 1}\n",
            r"a\.yaml: Expected `str`, got `int` - at `\$\.data",
        ),
    ],
    ids=["missing-field", "not-yaml", "wrong-type"],
)
def test_error_of_bad_manifest_names_file_and_field(
    tmp_path: Path, content: str, message: str
) -> None:
    write_overlay(tmp_path, {"a.yaml": content})
    with pytest.raises(BadManifest, match=message):
        load(tmp_path)


def test_missing_kustomization_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"kustomization\.yaml is missing"):
        load(tmp_path)


def test_missing_resource_is_reported(tmp_path: Path) -> None:
    folder = write_overlay(tmp_path, {})
    (folder / "kustomization.yaml").write_text("resources: [gone.yaml]\n")
    with pytest.raises(BadManifest, match=r"gone\.yaml"):
        load(tmp_path)
