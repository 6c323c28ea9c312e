"""Each function's func.yaml is valid for `func` and matches the manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest
import yaml

from manifests.overlays import rendered

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "functions").glob("*/func.yaml"))
CONTAINERS = {
    document["metadata"]["name"]: document["spec"]["template"]["spec"]["containers"][0]
    for document in [*rendered("knative/base"), *rendered("knative/front")]
    if document["kind"] in {"Service", "Deployment"} and "template" in document["spec"]
}


# The used fields of the schema of func 1.x (knative/func, schema/func_yaml-schema.json).
class _Part(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    pass


class _Variable(_Part):
    name: str
    value: str


class _Build(_Part):
    builder: Literal["pack", "s2i"]


class _Run(_Part):
    envs: list[_Variable]


class _Function(_Part):
    spec_version: str
    name: str
    runtime: str
    invoke: Literal["http", "cloudevent"]
    created: str
    build: _Build
    run: _Run


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_func_yaml_matches_manifest(folder: Path) -> None:
    document = yaml.load((folder / "func.yaml").read_text(), yaml.BaseLoader)  # noqa: S506 - no objects
    function = msgspec.convert(document, _Function)
    deployed = {
        variable["name"]: variable.get("value") for variable in CONTAINERS[function.name]["env"]
    }
    variables = {variable.name: variable.value for variable in function.run.envs}
    assert variables == {name: deployed[name] for name in deployed if name.startswith("FUNCTION_")}
    assert function.invoke == deployed["FUNCTION_SIGNATURE_TYPE"]
    assert (ROOT / variables["FUNCTION_SOURCE"]).parent == folder


def test_every_function_in_manifests_has_func_yaml() -> None:
    names = {yaml.safe_load((folder / "func.yaml").read_text())["name"] for folder in FOLDERS}
    assert names == set(CONTAINERS) - {"portal"}
