"""Reads the manifests that the kustomizations in `knative/` and `keda/` name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import yaml

from lowtide.local import manifests as kinds
from lowtide.local.errors import BadManifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS = ("knative", "keda")

_KINDS: dict[tuple[str, str], type[kinds.Part]] = {
    ("serving.knative.dev/v1", "Service"): kinds.KnativeService,
    ("v1", "Service"): kinds.CoreService,
    ("apps/v1", "Deployment"): kinds.Deployment,
    ("v1", "ConfigMap"): kinds.ConfigMap,
    ("eventing.knative.dev/v1", "Trigger"): kinds.Trigger,
    ("sources.knative.dev/v1", "SinkBinding"): kinds.SinkBinding,
    ("sources.knative.dev/v1", "PingSource"): kinds.PingSource,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): kinds.HttpRoute,
    ("keda.sh/v1alpha1", "ScaledObject"): kinds.ScaledObject,
    ("keda.sh/v1alpha1", "TriggerAuthentication"): kinds.TriggerAuthentication,
}

P = TypeVar("P", bound=kinds.Part)


class Manifests:
    """The manifests that one machine can honour, in the order the kustomizations list them."""

    def __init__(self, objects: list[kinds.Part]) -> None:
        self._objects = objects

    def all(self, kind: type[P]) -> list[P]:
        """Return every object of this kind."""
        return [found for found in self._objects if isinstance(found, kind)]


def load(root: Path) -> Manifests:
    """Read what `root`/knative and `root`/keda list; other kinds are skipped.

    Raises BadManifest, naming the file and the field.
    """
    objects: list[kinds.Part] = []
    for folder in FOLDERS:
        for path in _resources(root / folder):
            for document in _documents(path):
                kind = _KINDS.get((document.get("apiVersion", ""), document.get("kind", "")))
                if kind is None:
                    continue
                try:
                    objects.append(msgspec.convert(document, kind))
                except msgspec.ValidationError as error:
                    raise BadManifest(f"{path}: {error}") from error
    return Manifests(objects)


def _resources(folder: Path) -> Iterator[Path]:
    kustomization = folder / "kustomization.yaml"
    if not kustomization.exists():
        raise BadManifest(f"{kustomization} is missing: is {folder.parent} a Lowtide checkout?")
    for document in _documents(kustomization):
        for name in document.get("resources", []):
            path = folder / str(name)
            if path.is_dir():
                yield from _resources(path)
            else:
                yield path


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise BadManifest(f"{path}: {error}") from error
    return [document for document in documents if isinstance(document, dict)]
