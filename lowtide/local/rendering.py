"""Kustomization rendering as by `kubectl kustomize`, for the features that the overlays use."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from lowtide.local.options import BadManifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


Document = dict[str, Any]

# Lists that Kubernetes merges by a key; custom resources have no such lists.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
_CORE_GROUPS = frozenset(["", "apps", "batch", "networking.k8s.io", "policy"])


def group_of(document: Mapping[str, Any]) -> str:
    """Return the API group; empty for the core group."""
    group, slash, _ = str(document.get("apiVersion", "")).partition("/")
    return group if slash else ""


def matches(target: Mapping[str, str], document: Document) -> bool:
    """Return True if a patch's target selects the object.

    Kind and name are anchored regular expressions. Raises BadManifest for an unknown field.
    """
    unknown = set(target) - {"group", "kind", "name", "labelSelector"}
    if unknown:
        raise BadManifest(f"A patch target with {', '.join(sorted(unknown))} is not supported")
    metadata = document["metadata"]
    if "group" in target and target["group"] != group_of(document):
        return False
    if "kind" in target and not re.fullmatch(target["kind"], document["kind"]):
        return False
    if "name" in target and not re.fullmatch(target["name"], metadata["name"]):
        return False
    labels = metadata.get("labels", {})
    selectors = [
        selector.partition("=")
        for selector in target.get("labelSelector", "").split(",")
        if selector
    ]
    return all(labels.get(name) == value for name, _, value in selectors)


def merge(document: Document, patch: Document) -> Document:
    """Return the object with a strategic merge patch applied."""
    core = group_of(document) in _CORE_GROUPS
    return _merged(document, patch, "", core=core)


def _merged(target: Document, patch: Document, path: str, *, core: bool) -> Document:
    merged = dict(target)
    for name, value in patch.items():
        if name.startswith("$"):
            raise BadManifest(f"The patch directive {name} is not supported")
        old = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(old, dict):
            merged[name] = _merged(old, value, f"{path}.{name}", core=core)
        elif isinstance(value, list) and isinstance(old, list):
            if not core or name not in _MERGE_KEYS:
                raise BadManifest(f"The list {path}.{name} cannot be merged: use a JSON patch")
            merged[name] = _merged_list(old, value, _MERGE_KEYS[name], f"{path}.{name}")
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def _merged_list(old: list[Any], new: list[Any], key: str, path: str) -> list[Any]:
    patches = {item[key]: item for item in new}
    merged = [
        _merged(item, patches.pop(item[key]), path, core=True) if item[key] in patches else item
        for item in old
    ]
    return merged + [copy.deepcopy(item) for item in patches.values()]


def apply_operations(document: Document, operations: list[Document]) -> Document:
    """Return the object with a JSON patch applied: `replace`, and `add` at the end of a list."""
    patched = copy.deepcopy(document)
    for operation in operations:
        pointer, value = str(operation["path"]), copy.deepcopy(operation.get("value"))
        keys = [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]
        append = operation.get("op") == "add" and keys[-1] == "-"
        if not append and operation.get("op") != "replace":
            raise BadManifest(f"The patch operation {operation.get('op')} is not supported")
        node: Any = patched
        try:
            for key in keys[:-1]:
                node = node[int(key) if isinstance(node, list) else key]
            if append:
                node.append(value)
                continue
            last = int(keys[-1]) if isinstance(node, list) else keys[-1]
            node[last]  # RFC 6902: the target of a replace must exist
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            name = f"{patched['kind']} {patched['metadata']['name']}"
            raise BadManifest(f"{name} has no value at {pointer} to {operation['op']}") from None
        node[last] = value
    return patched


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SUPPORTED_FIELDS = frozenset(
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
    """An object and the file that it came from."""

    document: Document
    origin: Path


def render(folder: Path) -> list[Resource]:
    """Return every object of a kustomization, in the order of its files.

    Raises BadManifest, naming the file, for a missing file or an unsupported feature.
    """
    resources = _accumulate(folder, [])
    identities = set()
    for resource in resources:
        document = resource.document
        metadata = document["metadata"]
        identity = (document["apiVersion"], document["kind"], metadata["name"])
        if identity in identities:
            raise BadManifest(
                f"{resource.origin}: {document['kind']} {metadata['name']} is duplicated"
            )
        identities.add(identity)
    return resources


def documents(path: Path) -> list[Document]:
    """Return the objects of one YAML file; raises BadManifest if it cannot be read."""
    return [document for document in _all_documents(path) if isinstance(document, dict)]


def _all_documents(path: Path) -> list[Any]:
    try:
        return parsed(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise BadManifest(f"{path}: {error}") from error


def parsed(text: str) -> list[Any]:
    """Return the documents of a YAML text; uses libyaml if available."""
    return list(yaml.load_all(text, _LOADER))


def _accumulate(folder: Path, resources: list[Resource]) -> list[Resource]:
    kustomization = _kustomization(folder)
    accumulated = [*resources, *_resources(folder, kustomization)]
    for name in kustomization.get("components", []):
        accumulated = _accumulate(folder / name, accumulated)
    for patch in kustomization.get("patches", []):
        accumulated = _patched(accumulated, folder, patch)
    if namespace := kustomization.get("namespace"):
        accumulated = [_in_namespace(resource, namespace) for resource in accumulated]
    for image in kustomization.get("images", []):
        for resource in accumulated:
            _rename_image(resource.document, image)
    return accumulated


def _kustomization(folder: Path) -> Document:
    path = folder / "kustomization.yaml"
    if not path.exists():
        raise BadManifest(f"{path} is missing: is this a Lowtide checkout?")
    (document,) = documents(path) or [{}]
    if unknown := set(document) - _SUPPORTED_FIELDS:
        raise BadManifest(f"{path}: {', '.join(sorted(unknown))} is not supported")
    return document


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


def _patched(resources: list[Resource], folder: Path, patch: Document) -> list[Resource]:
    if set(patch) - {"path", "target"}:
        raise BadManifest(f"{folder}: a patch must have a path and may have a target")
    path = folder / patch["path"]
    patched = resources
    # A document that is a list is a JSON patch; one that is a mapping is a merge patch.
    for patch_document in _all_documents(path):
        target = patch.get("target") or _target_of(patch_document, path)
        hits = [matches(target, resource.document) for resource in patched]
        if not any(hits):
            raise BadManifest(f"{path} matches no object")
        if isinstance(patch_document, dict) and patch_document.get("$patch") == "delete":
            patched = [one for one, hit in zip(patched, hits, strict=True) if not hit]
            continue
        patched = [
            Resource(_apply(resource, patch_document, path), resource.origin) if hit else resource
            for resource, hit in zip(patched, hits, strict=True)
        ]
    return patched


def _target_of(patch: object, path: Path) -> dict[str, str]:
    if not isinstance(patch, dict):
        raise BadManifest(f"{path}: a JSON patch needs a target")
    return {
        "group": group_of(patch),
        "kind": patch["kind"],
        "name": patch["metadata"]["name"],
    }


def _apply(resource: Resource, patch: Any, path: Path) -> Document:
    document = resource.document
    try:
        if isinstance(patch, list):
            return apply_operations(document, patch)
        # A merge patch's kind, name and namespace only select its target.
        body = {name: value for name, value in patch.items() if name not in {"kind", "apiVersion"}}
        body["metadata"] = {
            name: value
            for name, value in patch.get("metadata", {}).items()
            if name not in {"name", "namespace"}
        }
        return merge(document, body)
    except BadManifest as error:
        raise BadManifest(f"{path}: {error}") from error


def _in_namespace(resource: Resource, namespace: str) -> Resource:
    document = resource.document
    if document["kind"] in _CLUSTER_SCOPED:
        return resource
    metadata = {**document["metadata"], "namespace": namespace}
    return Resource({**document, "metadata": metadata}, resource.origin)


def _rename_image(node: object, image: Document) -> None:
    """Rename images in every list of containers, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in {"containers", "initContainers"} and isinstance(value, list):
                for container in value:
                    container["image"] = _renamed(str(container.get("image", "")), image)
            _rename_image(value, image)
    elif isinstance(node, list):
        for value in node:
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
