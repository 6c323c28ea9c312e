"""docs/deploy.md: its paths, Secrets and patches match the manifests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lowtide.local.rendering import render
from manifests.overlays import rendered
from tests.monitoring.programs import needs, run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
FOLDERS = {path.name for path in ROOT.iterdir()} - {"docs"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_path_on_page_exists() -> None:
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
    words = [word for block in (*spans, *blocks(r"sh[^\n]*")) for word in block.split()]
    paths = {word for word in words if "/" in word and word.split("/", 1)[0] in FOLDERS}
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_secrets_have_the_keys_that_manifests_reference(tmp_path: Path) -> None:
    script, to_json = blocks("sh local")
    # The stub runs the image's programs from this environment.
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\n[ "$1 $2" = "run --rm" ] && shift 3 && exec "$@"\n')
    docker.chmod(0o755)
    done = subprocess.run(
        ["sh", "-euc", f"{script}\n{to_json}"],  # noqa: S607
        cwd=tmp_path,
        env={
            "PATH": f"{docker.parent}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "REGISTRY": "registry.example",
            "HOME": str(tmp_path),
            "DATABASE_HOST": "database.example:5432",
            "OWNER_PASSWORD": "owner",
            "PORTAL_PASSWORD": "a long enough password",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    written: dict[str, set[str]] = {}
    for secret, name in (("lowtide-database", "database.env"), ("lowtide-keys", "keys.env")):
        pairs = [line.partition("=") for line in (tmp_path / name).read_text().splitlines()]
        assert all(value for _, _, value in pairs)
        entry = json.loads((tmp_path / name).with_suffix(".json").read_text())
        assert entry == {key: value for key, _, value in pairs}
        written[secret] = {key for key, _, _ in pairs}
    references = {
        (reference["name"], reference["key"], bool(reference.get("optional")))
        for folder in ("knative/base", "keda")
        for document in rendered(folder)
        for reference in _key_references(document)
        if reference["name"] in written
    }
    for name, keys in written.items():
        required = {key for of, key, is_optional in references if of == name and not is_optional}
        assert required
        assert required <= keys <= {key for of, key, _ in references if of == name}


def test_named_authority_is_where_the_component_mounts_it() -> None:
    (volume, mount) = (
        operation["value"]
        for operation in yaml.safe_load(
            (ROOT / "knative/components/database-ca/mount.yaml").read_text(encoding="utf-8")
        )
    )
    (item,) = volume["configMap"]["items"]
    named = set(re.findall(r"sslrootcert=([^`'\s]+)", PAGE))
    assert named == {f"{mount['mountPath']}/{item['path']}"}
    # KEDA's operator reads the same URL.
    (values,) = re.findall(r"extraVolumeMounts=(.*)'", PAGE)
    assert json.loads(values)[0]["mountPath"] == mount["mountPath"]
    created = re.findall(r"create configmap (\S+) -n (\S+) --from-file=([^=]+)=", PAGE)
    assert created == [(volume["configMap"]["name"], n, item["key"]) for n in ("lowtide", "keda")]


def _key_references(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if {"name", "key"} <= set(value) and isinstance(value["key"], str):
            yield value
        for inner in value.values():
            yield from _key_references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _key_references(inner)


def test_canary_patch_splits_traffic_of_one_function(tmp_path: Path) -> None:
    *_, canary, patches = blocks("yaml")
    for folder in ("knative", "keda"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    overlay = tmp_path / "knative/overlays/canary"
    overlay.mkdir()
    (overlay / "canary.yaml").write_text(canary)
    kustomization = {"resources": ["../prod"], **yaml.safe_load(patches)}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    traffic = {
        resource.document["metadata"]["name"]: resource.document["spec"]["traffic"]
        for resource in render(overlay)
        if "traffic" in resource.document.get("spec", {})
    }
    assert set(traffic) == {"read"}
    assert sum(part["percent"] for part in traffic["read"]) == 100
    assert [part["tag"] for part in traffic["read"]] == ["stable", "candidate"]


@needs("kubectl")
def test_revision_patch_changes_engine_and_name_together(tmp_path: Path) -> None:
    revision, patches, *_ = blocks("yaml")
    for folder in ("knative", "keda"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    overlay = tmp_path / "knative/overlays/prod-gpu"
    before = _workers(run("kubectl", "kustomize", overlay))
    (overlay / "revision.yaml").write_text(revision)
    with (overlay / "kustomization.yaml").open("a") as kustomization:
        kustomization.write(patches)
    after = _workers(run("kubectl", "kustomize", overlay))
    assert after.keys() == before.keys() == {"infer-spot", "infer-dedicated"}
    for name, (arguments, environment) in after.items():
        old_arguments, old_environment = before[name]
        assert set(arguments) - set(old_arguments) == {"--revision=a09a354"}
        assert set(old_arguments) <= set(arguments)
        assert environment == old_environment | {"LOWTIDE_MODEL_REVISION": "qwen2.5-7b@a09a354"}


def _workers(manifests: str) -> dict[str, tuple[list[str], dict[str, str | None]]]:
    """Return the arguments of each worker's engine, and the worker's environment."""
    workers = {}
    for document in yaml.safe_load_all(manifests):
        if document["kind"] == "Deployment" and document["metadata"]["name"].startswith("infer-"):
            spec = document["spec"]["template"]["spec"]
            (engine,), (worker,) = spec["initContainers"], spec["containers"]
            environment = {each["name"]: each.get("value") for each in worker["env"]}
            workers[document["metadata"]["name"]] = engine["args"], environment
    return workers
