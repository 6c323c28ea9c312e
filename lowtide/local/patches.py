"""The two kinds of kustomize patches, as far as the overlays use them.

A strategic merge patch is a piece of an object: mappings merge, lists of named things merge by name,
every other list must be new. A JSON patch (RFC 6902) is a list of operations, of which `replace` is
known. Whatever else kustomize can do raises BadManifest, so that nothing is applied by half.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

from lowtide.local.errors import BadManifest

if TYPE_CHECKING:
    from collections.abc import Mapping

Document = dict[str, Any]

# What Kubernetes merges by which field; custom resources have no such lists.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
_CORE_GROUPS = frozenset(["", "apps", "batch", "networking.k8s.io", "policy"])


def group_of(document: Mapping[str, Any]) -> str:
    """Return the API group; the core's is empty."""
    group, slash, _ = str(document.get("apiVersion", "")).partition("/")
    return group if slash else ""


def matches(target: Mapping[str, str], document: Document) -> bool:
    """Whether a patch's target selects this object; names are anchored regular expressions."""
    unknown = set(target) - {"group", "kind", "name", "labelSelector"}
    if unknown:
        raise BadManifest(f"A patch's target by {', '.join(sorted(unknown))} is not understood")
    metadata = document["metadata"]
    if "group" in target and target["group"] != group_of(document):
        return False
    if "kind" in target and not re.fullmatch(target["kind"], document["kind"]):
        return False
    if "name" in target and not re.fullmatch(target["name"], metadata["name"]):
        return False
    labels = metadata.get("labels", {})
    wanted = [one.partition("=") for one in target.get("labelSelector", "").split(",") if one]
    return all(labels.get(name) == value for name, _, value in wanted)


def merge(document: Document, patch: Document) -> Document:
    """Return the object under a strategic merge patch."""
    core = group_of(document) in _CORE_GROUPS
    return _merged(document, patch, "", core=core)


def _merged(target: Document, patch: Document, path: str, *, core: bool) -> Document:
    found = dict(target)
    for name, value in patch.items():
        if name.startswith("$"):
            raise BadManifest(f"The directive {name} in a patch is not understood")
        old = found.get(name)
        if value is None:
            found.pop(name, None)
        elif isinstance(value, dict) and isinstance(old, dict):
            found[name] = _merged(old, value, f"{path}.{name}", core=core)
        elif isinstance(value, list) and isinstance(old, list):
            if not core or name not in _MERGE_KEYS:
                raise BadManifest(f"A merge patch of the list {path}.{name}: use a JSON patch")
            found[name] = _merged_list(old, value, _MERGE_KEYS[name], f"{path}.{name}")
        else:
            found[name] = copy.deepcopy(value)
    return found


def _merged_list(old: list[Any], new: list[Any], key: str, path: str) -> list[Any]:
    patches = {item[key]: item for item in new}
    found = [
        _merged(item, patches.pop(item[key]), path, core=True) if item[key] in patches else item
        for item in old
    ]
    return found + [copy.deepcopy(item) for item in patches.values()]


def apply_operations(document: Document, operations: list[Document]) -> Document:
    """Return the object under a JSON patch of `replace` operations."""
    found = copy.deepcopy(document)
    for operation in operations:
        if operation.get("op") != "replace":
            raise BadManifest(f"The operation {operation.get('op')} in a patch is not understood")
        pointer = str(operation["path"])
        keys = [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]
        place: Any = found
        try:
            for key in keys[:-1]:
                place = place[int(key) if isinstance(place, list) else key]
            last = int(keys[-1]) if isinstance(place, list) else keys[-1]
            place[last]  # as RFC 6902 says: what is replaced must be there
        except (KeyError, IndexError, ValueError, TypeError):
            name = f"{found['kind']} {found['metadata']['name']}"
            raise BadManifest(f"{name} has nothing at {pointer} to replace") from None
        place[last] = copy.deepcopy(operation["value"])
    return found
