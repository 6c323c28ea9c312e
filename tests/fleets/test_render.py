from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.testing import CliRunner

from lowtide.cli.main import app
from lowtide.core.pools import Pool
from lowtide.fleets.parsing import ParsedFile, parse
from lowtide.fleets.render import RenderError, render, stale, write
from lowtide.local.autoscaler import limits_of
from lowtide.settings import Settings
from manifests import check, fleets
from manifests.overlays import ROOT, label, rendered

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\
fleets:
  large:
    models: [org/large-70b, large-*]
    gpu: H100
    engine: {kind: openai, url: "http://127.0.0.1:8000"}
    spot: {max_replicas: 3, rows_per_replica: 7}
    dedicated: {min_replicas: 1, max_replicas: 2}
  small:
    models: [small]
    engine: {concurrency: 8, api_key_env: SMALL_KEY}
"""


def parsed(text: str = TEXT) -> ParsedFile:
    return parse(text, Settings.model_construct())


def objects(files: dict[str, str], path: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all(files[path])}


def environment(deployment: dict[str, Any]) -> dict[str, Any]:
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_rendered_example_is_in_step_with_its_file() -> None:
    assert fleets.stale() == [], "run: lowtide fleets render --to knative/fleets"


def test_rendering_depends_on_the_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = render(parsed(), ROOT)
    monkeypatch.setenv("LOWTIDE_SPOT_REPLICAS", "77")
    monkeypatch.setenv("LOWTIDE_ENGINE", "noop")
    large, small = re.split(r"(?=  small:)", TEXT.removeprefix("fleets:\n"))
    reordered = render(parsed("fleets:\n" + small + large), ROOT)
    assert render(parsed(), ROOT) == first
    assert [name for name in first if first[name] != reordered[name]] == [
        "configmap.yaml",
        "revision.yaml",
    ]


@pytest.mark.parametrize("pool", list(Pool))
def test_each_pool_has_its_objects_under_the_name_of_its_fleet(pool: Pool) -> None:
    found = objects(render(parsed(), ROOT), f"large/{pool}.yaml")
    assert set(found) == {"Deployment", "Service", "PodDisruptionBudget", "ScaledObject"}
    name = f"infer-{pool}-large"
    assert {one["metadata"]["name"] for one in found.values()} == {name}
    assert found["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == name
    selected = {"app.kubernetes.io/name": name}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == selected
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == selected
    assert labels.items() >= {**selected, "lowtide.dev/fleet": "large"}.items()
    assert environment(found["Deployment"])["FUNCTION_TARGET"] == f"infer_{pool}"


def test_workers_get_what_the_file_sets_of_their_engine() -> None:
    files = render(parsed(), ROOT)
    large = environment(objects(files, "large/spot.yaml")["Deployment"])
    small = environment(objects(files, "small/spot.yaml")["Deployment"])
    assert (large["LOWTIDE_FLEET"], small["LOWTIDE_FLEET"]) == ("large", "small")
    assert large["LOWTIDE_ENGINE"] == "openai"
    assert large["LOWTIDE_ENGINE_URL"] == "http://127.0.0.1:8000"
    assert small["LOWTIDE_WORKER_CONCURRENCY"] == "8"
    assert small["LOWTIDE_ENGINE_API_KEY"] == {
        "secretKeyRef": {"name": "lowtide-engines", "key": "SMALL_KEY"}
    }
    # The rest stays with the settings of the cluster.
    assert not {"LOWTIDE_WORKER_CONCURRENCY", "LOWTIDE_ENGINE_API_KEY"} & set(large)
    assert not {"LOWTIDE_ENGINE", "LOWTIDE_ENGINE_URL"} & set(small)


@pytest.mark.parametrize(
    ("path", "bounds", "limit"),
    [
        ("large/spot.yaml", (0, 3, "7"), 21),
        ("large/dedicated.yaml", (1, 2, "10"), 20),
        ("small/spot.yaml", (0, 4, "5"), 20),
    ],
)
def test_scaled_object_has_bounds_and_lane_of_its_fleet(
    path: str, bounds: tuple[int, int, str], limit: int
) -> None:
    spec = objects(render(parsed(), ROOT), path)["ScaledObject"]["spec"]
    metadata = spec["triggers"][0]["metadata"]
    assert (
        spec["minReplicaCount"],
        spec["maxReplicaCount"],
        metadata["targetQueryValue"],
    ) == bounds
    assert limits_of(metadata["query"]) == [limit] * 2
    fleet, _, pool = path.removesuffix(".yaml").partition("/")
    assert f"waiting_requests('{fleet}', '{pool}'," in metadata["query"]
    assert set(re.findall(r"fleet = '([^']*)' AND pool = '([^']*)'", metadata["query"])) == {
        (fleet, pool)
    }
    assert metadata["query"].count("fleet = ") == metadata["query"].count("pool = ") + 1


def test_gpu_fleet_has_engine_and_nodes_of_its_kind() -> None:
    files = render(parsed(), ROOT)
    pod = objects(files, "large/spot.yaml")["Deployment"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"lowtide.dev/pool": "spot", "lowtide.dev/gpu": "H100"}
    assert pod["priorityClassName"] == "lowtide-spot"
    (engine,) = yaml.safe_load(files["large/engine.yaml"])["spec"]["template"]["spec"][
        "initContainers"
    ]
    assert engine["args"][0] == "org/large-70b"
    assert yaml.safe_load(files["quota.yaml"])["spec"]["hard"] == {"requests.nvidia.com/gpu": "5"}
    assert "small/engine.yaml" not in files
    small = objects(files, "small/spot.yaml")["Deployment"]["spec"]["template"]["spec"]
    assert "nodeSelector" not in small


def test_engine_elsewhere_needs_no_gpu_in_the_pod() -> None:
    files = render(parsed(TEXT.replace("127.0.0.1", "vllm.engines")), ROOT)
    pod = objects(files, "large/spot.yaml")["Deployment"]["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod
    assert not {"large/engine.yaml", "quota.yaml"} & set(files)


def test_engine_without_an_exact_model_is_refused() -> None:
    with pytest.raises(RenderError, match="fleet large: which model its engine loads is not known"):
        render(parsed(TEXT.replace("org/large-70b, ", "")), ROOT)


def test_change_of_the_file_starts_every_process_again() -> None:
    changed = render(parsed(TEXT.replace("H100", "H200")), ROOT)["revision.yaml"]
    assert changed != render(parsed(), ROOT)["revision.yaml"]


def test_config_map_holds_the_file_unchanged() -> None:
    text = "  # starts with a space\n" + TEXT
    data = yaml.safe_load(render(parsed(text), ROOT)["configmap.yaml"])["data"]
    assert data == {"fleets.yaml": text}


def test_longest_name_fits_kubernetes() -> None:
    name = "a" * 40
    files = render(parsed("fleets: {" + name + ": {models: [x]}}"), ROOT)
    for pool in Pool:
        for one in objects(files, f"{name}/{pool}.yaml").values():
            assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", one["metadata"]["name"])


def test_write_removes_fleets_that_are_gone_and_keeps_what_users_added(tmp_path: Path) -> None:
    write(render(parsed(), ROOT), tmp_path)
    own = tmp_path / "small" / "mine.yaml"
    own.write_text("kind: ConfigMap\n")
    fewer = render(parsed("fleets: {other: {models: [x]}}"), ROOT)
    assert "large/spot.yaml" in stale(fewer, tmp_path)
    write(fewer, tmp_path)
    assert stale(fewer, tmp_path) == []
    assert not (tmp_path / "large").exists()
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["mine.yaml"]


def test_stale_file_is_named(tmp_path: Path) -> None:
    files = render(parsed(), ROOT)
    write(files, tmp_path)
    spot = tmp_path / "large/spot.yaml"
    spot.write_text(spot.read_text().replace("maxReplicaCount: 3", "maxReplicaCount: 9"))
    assert stale(files, tmp_path) == ["large/spot.yaml"]


def test_component_replaces_the_default_workers_and_mounts_the_file() -> None:
    documents = rendered("knative/overlays/prod-fleets")
    names = {label(one) for one in documents}
    assert "Deployment/infer-spot-qwen-8b" in names
    assert not any(name.endswith(("/infer-spot", "/infer-dedicated")) for name in names)
    (config,) = (one for one in documents if label(one) == "ConfigMap/lowtide-config")
    path = config["data"]["LOWTIDE_FLEETS"]
    for one in documents:
        if one["kind"] == "Deployment" or one["apiVersion"] == "serving.knative.dev/v1":
            pod = one["spec"]["template"]["spec"]
            mounts = {
                each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]
            }
            assert path == f"{mounts['fleets']}/fleets.yaml", label(one)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("max_replicas: 20", "max_replicas: 21", "max_replicas is 21, but 20 in ScaledObject infer-spot-q"),
        ("rows_per_replica: 50,", "rows_per_replica: 9,", "rows_per_replica is 9, but 50 in Sc"),
        ("  qwen-8b:\n", "  qwen-9b:\n", "fleets and ScaledObjects differ in qwen-8b/dedicated"),
        ("    models: [BAAI", "    model: [BAAI", "fleet embeddings: model: is an unknown key"),
    ],
)  # fmt: skip
def test_file_that_differs_from_the_scalers_is_reported(old: str, new: str, problem: str) -> None:
    documents = rendered("knative/overlays/prod-fleets")
    (file,) = (one for one in documents if label(one) == "ConfigMap/lowtide-fleets")
    assert check.findings(documents) == []
    assert old in file["data"]["fleets.yaml"]
    file["data"]["fleets.yaml"] = file["data"]["fleets.yaml"].replace(old, new)
    assert any(problem in one for one in check.findings(documents)), check.findings(documents)


def test_commands_check_list_and_render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, run = tmp_path / "fleets.yaml", CliRunner()
    file.write_text(TEXT)
    checked = run.invoke(app, ["fleets", "check", str(file)])
    assert (checked.exit_code, "2 fleets, no problems: large, small" in checked.output) == (0, True)
    shown = run.invoke(app, ["fleets", "render", "--to", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert stale(render(parsed(), ROOT), tmp_path) == []
    monkeypatch.setenv("LOWTIDE_FLEETS", str(file))
    listed = run.invoke(app, ["fleets", "list", "--json"])
    assert [one["name"] for one in yaml.safe_load(listed.output)] == ["large", "small"]
    assert "org/large-70b" in run.invoke(app, ["fleets", "list"]).output
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(TEXT.replace("gpu:", "gpus:"))
    monkeypatch.setenv("LOWTIDE_FLEETS", str(wrong))
    for command in (["check", str(wrong)], ["render", "--to", str(tmp_path), str(wrong)], ["list"]):
        failed = run.invoke(app, ["fleets", *command])
        assert failed.exit_code == 1
        assert "wrong.yaml:4: fleet large: gpus: is an unknown key" in failed.output


def test_render_outside_a_checkout_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "knative/fleets/fleets.yaml", tmp_path)
    monkeypatch.setattr("lowtide.local.options.default_root", lambda: tmp_path)
    failed = CliRunner().invoke(app, ["fleets", "render", "--to", str(tmp_path)])
    assert failed.exit_code == 1
    assert "fleets are rendered from a Lowtide checkout" in failed.output
