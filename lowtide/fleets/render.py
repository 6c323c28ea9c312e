"""The manifests of fleets: a kustomize component with a folder per fleet, written from their file."""

from __future__ import annotations

import hashlib
import textwrap
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import yaml

from lowtide.core.pools import Pool
from lowtide.fleets.model import is_pattern
from lowtide.fleets.scaling import scaled_object
from lowtide.settings import EngineKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lowtide.fleets.model import Fleet
    from lowtide.fleets.parsing import EnginePart, ParsedFile


Document = dict[str, Any]

WRITER: Final = "lowtide fleets render"
_HEADER: Final = f"# Written by `{WRITER}`; change fleets.yaml instead.\n"
_API: Final = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n"
_FOLDER: Final = "/etc/lowtide"
_GPU: Final = "knative/components/gpu"
ENGINE_KEYS: Final = "lowtide-engines"
"""The Secret with the engines' API keys, by the names that the file gives them."""
_LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "::1", "localhost"})
FLEET_LABEL: Final = "lowtide.dev/fleet"

# Merge patches: kind and name only fill fields, as the target selects the objects.
_REMOVE: Final = """\
# The fleets' workers replace those of the default fleet.
apiVersion: v1
kind: Any
metadata:
  name: any
$patch: delete
"""
_MOUNT: Final = f"""\
# The file of fleets, for every process.
- op: add
  path: /spec/template/spec/volumes/-
  value:
    name: fleets
    configMap:
      name: lowtide-fleets
- op: add
  path: /spec/template/spec/containers/0/volumeMounts/-
  value:
    name: fleets
    mountPath: {_FOLDER}
    readOnly: true
"""
_SETTINGS: Final = f"""\
apiVersion: v1
kind: ConfigMap
metadata:
  name: lowtide-config
  namespace: lowtide
data:
  LOWTIDE_FLEETS: {_FOLDER}/fleets.yaml
"""


class RenderError(ValueError):
    """Fleets that no manifests can be written for."""


def worker_name(fleet: str, pool: Pool) -> str:
    """Return the name of a pool's Deployment, and of the objects around it."""
    return f"infer-{pool.value}-{fleet}"


def render(file: ParsedFile, root: Path) -> dict[str, str]:
    """Return the text of every file by its path in `knative/fleets/`; the same for the same input.

    `root` is the checkout, whose workers are the template. Raises RenderError if an engine's model
    is not known, OSError if `root` is no checkout.
    """
    files: dict[str, str] = {}
    for fleet in file.fleets:
        part = file.parts[fleet.name]
        for pool in Pool:
            documents = worker_documents(root, fleet, part.engine, pool)
            dumped = "---\n".join(_dumped(document) for document in documents)
            scaler = scaler_text(root, fleet, pool)
            files[f"{fleet.name}/{pool.value}.yaml"] = f"{_HEADER}{dumped}---\n{scaler}"
        if has_engine(fleet):
            files[f"{fleet.name}/engine.yaml"] = _engine_patch(root, fleet)
        files[f"{fleet.name}/kustomization.yaml"] = _component(fleet)
    engines = [fleet for fleet in file.fleets if has_engine(fleet)]
    if engines:
        files["quota.yaml"] = _quota(root, engines)
    files |= {
        "configmap.yaml": _config_map(file.text),
        "mount.yaml": _HEADER + _MOUNT,
        "remove.yaml": _HEADER + _REMOVE,
        "revision.yaml": _HEADER + _revision(file.text),
        "settings.yaml": _HEADER + _SETTINGS,
        "kustomization.yaml": _top(file.fleets.names, has_gpus=bool(engines)),
    }
    return files


def write(files: Mapping[str, str], folder: Path) -> None:
    """Write the files, and remove those that an earlier call wrote of fleets that are gone."""
    for path in _written(folder):
        if str(path.relative_to(folder)) not in files:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def stale(files: Mapping[str, str], folder: Path) -> list[str]:
    """Return the names of the files in `folder` that differ from those rendered."""
    current = {str(path.relative_to(folder)): path.read_text() for path in _written(folder)}
    return sorted(name for name in current.keys() | files if current.get(name) != files.get(name))


def _written(folder: Path) -> list[Path]:
    """Return the files that `write` has written to a folder; users may add their own."""
    return [
        path
        for path in sorted((*folder.glob("*.yaml"), *folder.glob("*/*.yaml")))
        if path.read_text().startswith(_HEADER)
    ]


def has_engine(fleet: Fleet) -> bool:
    """Return whether each worker has an engine in its pod: with a GPU, if the URL is the pod's own."""
    own = urlsplit(fleet.engine.url).hostname in _LOCAL_HOSTS
    return fleet.gpu is not None and own and fleet.engine.kind == EngineKind.OPENAI


def worker_documents(root: Path, fleet: Fleet, engine: EnginePart, pool: Pool) -> list[Document]:
    """Return the Deployment, the Service and the PodDisruptionBudget of a pool's workers.

    They are those of `knative/base`, with the fleet's name and environment. `engine` is what the file
    sets: the rest stays with the settings of the cluster.
    """
    base, name = f"infer-{pool.value}", worker_name(fleet.name, pool)
    deployment, service = _documents(root / f"knative/base/workers/{base}.yaml")
    budgets = _documents(root / "knative/base/disruption-budgets.yaml")
    (budget,) = (one for one in budgets if one["metadata"]["name"] == base)
    template = deployment["spec"]["template"]
    template["spec"]["containers"][0]["env"] += _environment(fleet.name, engine)
    for metadata in (deployment["metadata"], template["metadata"]):
        metadata["labels"][FLEET_LABEL] = fleet.name
    if has_engine(fleet):
        (placement,) = _documents(root / f"{_GPU}/{pool.value}.yaml")
        template["spec"] |= placement["spec"]["template"]["spec"]
        template["spec"]["nodeSelector"]["lowtide.dev/gpu"] = fleet.gpu
    return [_renamed(document, base, name) for document in (deployment, service, budget)]


def scaler_text(root: Path, fleet: Fleet, pool: Pool) -> str:
    """Return the ScaledObject of a pool as YAML."""
    name = worker_name(fleet.name, pool)
    return scaled_object(root, fleet.name, pool, fleet.pool(pool), name=name, writer=WRITER)


def _environment(fleet: str, engine: EnginePart) -> list[Document]:
    values = {
        "LOWTIDE_FLEET": fleet,
        "LOWTIDE_ENGINE": engine.kind,
        "LOWTIDE_ENGINE_URL": engine.url,
        "LOWTIDE_WORKER_CONCURRENCY": engine.concurrency,
        "LOWTIDE_ENGINE_SHARE": engine.share,
    }
    variables: list[Document] = [
        {"name": name, "value": str(value)} for name, value in values.items() if value is not None
    ]
    if engine.api_key_env is not None:
        reference = {"name": ENGINE_KEYS, "key": engine.api_key_env}
        variables.append(
            {"name": "LOWTIDE_ENGINE_API_KEY", "valueFrom": {"secretKeyRef": reference}}
        )
    return variables


def _engine_patch(root: Path, fleet: Fleet) -> str:
    """Return the patch that adds vLLM to each worker, with the fleet's model."""
    model = next((name for name in fleet.models if not is_pattern(name)), None)
    if model is None:
        raise RenderError(
            f"fleet {fleet.name}: which model its engine loads is not known: list its exact name first "
            "in models, or name the engine's address in engine.url"
        )
    path = root / _GPU / "engine.yaml"
    (patch,) = _documents(path)
    shipped = patch["spec"]["template"]["spec"]["initContainers"][0]["args"][0]
    return _HEADER + path.read_text().replace(f"- {shipped}\n", f"- {model}\n")


def _quota(root: Path, fleets: Iterable[Fleet]) -> str:
    (quota,) = _documents(root / _GPU / "quota.yaml")
    replicas = sum(fleet.pool(pool).max_replicas for fleet in fleets for pool in Pool)
    quota["spec"]["hard"]["requests.nvidia.com/gpu"] = str(replicas)
    return _HEADER + _dumped(quota)


def _component(fleet: Fleet) -> str:
    patches = f"""\
patches:
  - path: engine.yaml
    target:
      group: apps
      kind: Deployment
      labelSelector: {FLEET_LABEL}={fleet.name}
"""
    resources = "resources:\n" + "".join(f"  - {pool.value}.yaml\n" for pool in Pool)
    return _HEADER + _API + resources + (patches if has_engine(fleet) else "")


def _top(fleets: Iterable[str], *, has_gpus: bool) -> str:
    components = [*(["../components/gpu-nodes"] if has_gpus else []), *fleets]
    resources = ["configmap.yaml", *(["quota.yaml"] if has_gpus else [])]
    targets = "".join(
        f"""\
  - path: {path}
    target:
      group: {group}
      kind: {kind}
"""
        for path in ("mount.yaml", "revision.yaml")
        for group, kind in (("serving.knative.dev", "Service"), ("apps", "Deployment"))
    )
    return (
        f"{_HEADER}{_API}resources:\n{_items(resources)}components:\n{_items(components)}patches:\n"
        f"  - path: remove.yaml\n    target:\n      name: infer-({'|'.join(Pool)})\n"
        f"  - path: settings.yaml\n{targets}"
    )


def _items(names: Iterable[str]) -> str:
    return "".join(f"  - {name}\n" for name in names)


def _config_map(text: str) -> str:
    # The indentation is explicit, as a file may start with a space.
    return f"""\
{_HEADER}apiVersion: v1
kind: ConfigMap
metadata:
  name: lowtide-fleets
  namespace: lowtide
data:
  fleets.yaml: |2
{textwrap.indent(text.rstrip(), "    ")}
"""


def _revision(text: str) -> str:
    """Return the patch that makes every process start again when the file changes."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"""\
apiVersion: v1
kind: Any
metadata:
  name: any
spec:
  template:
    metadata:
      annotations:
        lowtide.dev/fleets: "{digest}"
"""


def _documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def _dumped(document: Document) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=100)


def _renamed(value: Any, old: str, new: str) -> Any:
    """Return a copy with `new` for every text that equals `old`, at any depth."""
    if isinstance(value, dict):
        return {key: _renamed(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, old, new) for one in value]
    return new if value == old else value
