"""Renders a kustomization: what `kubectl kustomize` prints, for what the overlays here use.

Weighed: the PyPI packages wrap the kustomize binary or write kustomizations, and a laptop that
runs `lowtide up` has no kubectl. What is not understood raises BadManifest; a test compares the
result with kubectl's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from lowtide.local import patches
from lowtide.local.errors import BadManifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowtide.local.patches import Document

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KNOWN = frozenset(
    [
        "apiVersion",
        "kind",
        "resources",
        "components",
        "patches",
        "namespace",
        "images",
    ]
)
_CLUSTER_SCOPED = frozenset(["Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding"])


@dataclass(frozen=True, slots=True)
class Resource:
    """One object, and the file it came from."""

    document: Document
    origin: Path


def render(folder: Path) -> list[Resource]:
    """Return every object of a kustomization, in the order of its files.

    Raises BadManifest, naming the file, for what is missing or not understood.
    """
    found = _accumulate(folder, [])
    seen = set()
    for resource in found:
        document = resource.document
        metadata = document["metadata"]
        identity = (document["apiVersion"], document["kind"], metadata["name"])
        if identity in seen:
            raise BadManifest(f"{resource.origin}: {document['kind']} {metadata['name']} is twice")
        seen.add(identity)
    return found


def documents(path: Path) -> list[Document]:
    """Return the objects of one YAML file; raises BadManifest when it cannot be read."""
    return [document for document in _anything(path) if isinstance(document, dict)]


def _anything(path: Path) -> list[Any]:
    try:
        return parsed(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise BadManifest(f"{path}: {error}") from error


def parsed(text: str) -> list[Any]:
    """Return the documents of a YAML text, by libyaml where it is there."""
    return list(yaml.load_all(text, _LOADER))


def _accumulate(folder: Path, given: list[Resource]) -> list[Resource]:
    kustomization = _kustomization(folder)
    found = [*given, *_resources(folder, kustomization)]
    for name in kustomization.get("components", []):
        found = _accumulate(folder / name, found)
    for patch in kustomization.get("patches", []):
        found = _patched(found, folder, patch)
    if namespace := kustomization.get("namespace"):
        found = [_in_namespace(resource, namespace) for resource in found]
    for image in kustomization.get("images", []):
        for resource in found:
            _rename_image(resource.document, image)
    return found


def _kustomization(folder: Path) -> Document:
    path = folder / "kustomization.yaml"
    if not path.exists():
        raise BadManifest(f"{path} is missing: is this a Lowtide checkout?")
    (found,) = documents(path) or [{}]
    if unknown := set(found) - _KNOWN:
        raise BadManifest(f"{path}: {', '.join(sorted(unknown))} is not understood")
    return found


def _resources(folder: Path, kustomization: Document) -> Iterator[Resource]:
    for name in kustomization.get("resources", []):
        path = folder / name
        if path.is_dir():
            yield from _accumulate(path, [])
            continue
        for document in documents(path):
            if not isinstance(document.get("metadata"), dict) or "kind" not in document:
                raise BadManifest(f"{path}: an object without `metadata` or `kind`")
            yield Resource(document, path)


def _patched(given: list[Resource], folder: Path, patch: Document) -> list[Resource]:
    if set(patch) - {"path", "target"}:
        raise BadManifest(f"{folder}: a patch needs a path, and may have a target")
    path = folder / patch["path"]
    found = given
    # A JSON patch is a document that is a list; merge patches are documents, one an object.
    for one in _anything(path):
        target = patch.get("target") or _target_of(one, path)
        chosen = [patches.matches(target, resource.document) for resource in found]
        if not any(chosen):
            raise BadManifest(f"{path} patches nothing")
        found = [
            Resource(_apply(resource, one, path), resource.origin) if hit else resource
            for resource, hit in zip(found, chosen, strict=True)
        ]
    return found


def _target_of(patch: object, path: Path) -> dict[str, str]:
    if not isinstance(patch, dict):
        raise BadManifest(f"{path}: a JSON patch needs a target")
    return {
        "group": patches.group_of(patch),
        "kind": patch["kind"],
        "name": patch["metadata"]["name"],
    }


def _apply(resource: Resource, patch: Any, path: Path) -> Document:
    document = resource.document
    try:
        if isinstance(patch, list):
            return patches.apply_operations(document, patch)
        # The name in a patch with a target says nothing.
        body = {name: value for name, value in patch.items() if name not in {"kind", "apiVersion"}}
        body["metadata"] = {
            name: value
            for name, value in patch.get("metadata", {}).items()
            if name not in {"name", "namespace"}
        }
        return patches.merge(document, body)
    except BadManifest as error:
        raise BadManifest(f"{path}: {error}") from error


def _in_namespace(resource: Resource, namespace: str) -> Resource:
    document = resource.document
    if document["kind"] in _CLUSTER_SCOPED:
        return resource
    metadata = {**document["metadata"], "namespace": namespace}
    return Resource({**document, "metadata": metadata}, resource.origin)


def _rename_image(place: object, image: Document) -> None:
    """Rename images in every list of containers, however deep."""
    if isinstance(place, dict):
        for name, value in place.items():
            if name in {"containers", "initContainers"} and isinstance(value, list):
                for container in value:
                    container["image"] = _renamed(str(container.get("image", "")), image)
            _rename_image(value, image)
    elif isinstance(place, list):
        for value in place:
            _rename_image(value, image)


def _renamed(old: str, image: Document) -> str:
    name, at, digest = old.partition("@")
    name, colon, tag = name.partition(":")
    if name != image["name"]:
        return old
    if "newTag" in image or "digest" in image:
        colon, tag = (":", image["newTag"]) if "newTag" in image else ("", "")
        at, digest = ("@", image["digest"]) if "digest" in image else ("", "")
    return f"{image.get('newName', name)}{colon}{tag}{at}{digest}"
