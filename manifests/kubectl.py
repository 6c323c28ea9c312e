"""Comparison of our rendering with kubectl's."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from lowtide.local.rendering import parsed
from manifests.overlays import ROOT, label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.local.rendering import Document


def available() -> bool:
    """Return True if kubectl is installed."""
    return shutil.which("kubectl") is not None


def differences(kustomization: str, documents: Sequence[Document]) -> list[str]:
    """Return the objects that kubectl renders differently, or that only one of the two renders."""
    output = subprocess.run(  # noqa: S603 - a folder of ours
        ["kubectl", "kustomize", str(ROOT / kustomization)],  # noqa: S607 - the user's own
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    theirs = {_key(one): _settled(one) for one in parsed(output)}
    ours = {_key(one): _settled(one) for one in documents}
    return [
        f"{key[-1]}: kubectl renders it differently"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]


def _key(document: Document) -> tuple[str, str]:
    return document["apiVersion"], label(document)


def _settled(value: Any) -> Any:
    """Sort lists of named items, as a patch may add items at either end."""
    if isinstance(value, dict):
        return {name: _settled(one) for name, one in value.items()}
    if not isinstance(value, list):
        return value
    found = [_settled(one) for one in value]
    if all(isinstance(one, dict) and "name" in one for one in found):
        found.sort(key=lambda one: str(one["name"]))
    return found
