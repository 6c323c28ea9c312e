"""Rendering of kustomizations by the local runtime; `tests/manifests` compares it with kubectl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lowtide.local.options import BadManifest
from lowtide.local.rendering import render

if TYPE_CHECKING:
    from pathlib import Path

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, labels: {x: "1"}}
spec:
  template:
    spec:
      containers: [{name: c, image: "lowtide:dev", env: [{name: A, value: "1"}, {name: B, value: "2"}]}]
"""


def build(folder: Path, kustomization: dict[str, Any], **files: str) -> dict[str, Any]:
    """Render a kustomization of these files; return its only object."""
    for name, content in {"a": DEPLOYMENT, **files}.items():
        (folder / f"{name}.yaml").write_text(content)
    merged = {"resources": ["a.yaml"], **kustomization}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(merged))
    (resource,) = render(folder)
    return resource.document


def test_merge_patch_merges_lists_by_name(tmp_path: Path) -> None:
    patch = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, labels: {y: "2"}}
spec:
  template:
    spec:
      containers: [{name: c, env: [{name: B, value: "3"}, {name: C, value: "4"}]}]
      volumes: [{name: v, emptyDir: {}}]
"""
    document = build(tmp_path, {"patches": [{"path": "p.yaml"}]}, p=patch)
    (container,) = document["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["value"] for one in container["env"]} == {"A": "1", "B": "3", "C": "4"}
    assert container["image"] == "lowtide:dev"
    assert document["spec"]["template"]["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert document["metadata"]["labels"] == {"x": "1", "y": "2"}


@pytest.mark.parametrize(
    ("target", "matches"),
    [
        ({"kind": "Deployment"}, True),
        ({"kind": "Deployment", "name": "a|b"}, True),
        ({"kind": "Deployment", "name": "aa"}, False),
        ({"group": "apps"}, True),
        ({"group": "serving.knative.dev"}, False),
        ({"kind": "Deployment", "labelSelector": "x=1"}, True),
        ({"kind": "Deployment", "labelSelector": "x=2"}, False),
    ],
    ids=str,
)
def test_json_patch_applies_to_its_target(
    tmp_path: Path, target: dict[str, str], *, matches: bool
) -> None:
    patch = "[{op: replace, path: /spec/template/spec/containers/0/image, value: new}]"
    kustomization = {"patches": [{"path": "p.yaml", "target": target}]}
    if not matches:
        with pytest.raises(BadManifest, match="matches no object"):
            build(tmp_path, kustomization, p=patch)
        return
    document = build(tmp_path, kustomization, p=patch)
    assert document["spec"]["template"]["spec"]["containers"][0]["image"] == "new"


def test_json_patch_appends_to_a_list(tmp_path: Path) -> None:
    patch = "[{op: add, path: /spec/template/spec/containers/-, value: {name: new}}]"
    target = {"kind": "Deployment"}
    document = build(tmp_path, {"patches": [{"path": "p.yaml", "target": target}]}, p=patch)
    names = [one["name"] for one in document["spec"]["template"]["spec"]["containers"]]
    assert names == ["c", "new"]


def test_delete_patch_removes_its_targets_only(tmp_path: Path) -> None:
    patch = "{apiVersion: v1, kind: Any, metadata: {name: any}, $patch: delete}"
    (tmp_path / "a.yaml").write_text(
        f"{DEPLOYMENT}\n---\n{DEPLOYMENT.replace('name: a', 'name: aa')}"
    )
    (tmp_path / "p.yaml").write_text(patch)
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [a.yaml]\npatches: [{path: p.yaml, target: {name: a}}]\n"
    )
    assert [one.document["metadata"]["name"] for one in render(tmp_path)] == ["aa"]


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ({"newName": "r/x"}, "r/x:dev"),
        ({"newTag": "2"}, "lowtide:2"),
        ({"newName": "r/x", "newTag": "2", "digest": "sha256:0"}, "r/x:2@sha256:0"),
        ({"digest": "sha256:0"}, "lowtide@sha256:0"),
    ],
    ids=["name", "tag", "all", "digest"],
)
def test_images_are_renamed(tmp_path: Path, image: dict[str, str], name: str) -> None:
    document = build(tmp_path, {"images": [{"name": "lowtide", **image}]})
    assert document["spec"]["template"]["spec"]["containers"][0]["image"] == name


@pytest.mark.parametrize(
    ("kustomization", "patch", "message"),
    [
        ({"helmCharts": []}, "", "helmCharts is not supported"),
        ({"resources": ["gone.yaml"]}, "", r"gone\.yaml"),
        ({"resources": ["a.yaml", "a.yaml"]}, "", "is duplicated"),
        ({"patches": [{"patch": "x"}]}, "", "must have a path"),
        (
            {"patches": [{"path": "p.yaml", "target": {"kind": "Deployment"}}]},
            "[{op: add, path: /spec/x, value: 1}]",
            "operation add",
        ),
        (
            {"patches": [{"path": "p.yaml", "target": {"kind": "Deployment"}}]},
            "[{op: replace, path: /spec/x/y, value: 1}]",
            "no value at /spec/x/y",
        ),
        (
            {"patches": [{"path": "p.yaml", "target": {"kind": "Deployment"}}]},
            "[{op: add, path: /spec/template/-, value: 1}]",
            "no value at /spec/template/- to add",
        ),
        ({"patches": [{"path": "p.yaml"}]}, "[{op: replace}]", "needs a target"),
        (
            {"patches": [{"path": "p.yaml"}]},
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {$patch: delete}}",
            r"directive \$patch",
        ),
        (
            {"patches": [{"path": "p.yaml", "target": {"version": "v1"}}]},
            "[]",
            "target with version",
        ),
    ],
    ids=[
        "field",
        "file",
        "twice",
        "inline",
        "add",
        "no-path",
        "no-list",
        "target",
        "directive",
        "version",
    ],
)
def test_unsupported_kustomization_is_refused(
    tmp_path: Path, kustomization: dict[str, Any], patch: str, message: str
) -> None:
    with pytest.raises(BadManifest, match=message):
        build(tmp_path, kustomization, p=patch)


def test_merge_patch_of_custom_resource_list_is_refused(tmp_path: Path) -> None:
    service = DEPLOYMENT.replace("apps/v1", "serving.knative.dev/v1")
    patch = service.replace("lowtide:dev", "other")
    with pytest.raises(BadManifest, match="use a JSON patch"):
        build(tmp_path, {"patches": [{"path": "p.yaml"}]}, a=service, p=patch)
