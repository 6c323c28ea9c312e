"""The kustomizations and their rendered objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowtide.local.rendering import documents, render

if TYPE_CHECKING:
    from lowtide.local.rendering import Document

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = ("dev", "stage", "prod", "prod-gpu", "prod-fleets", "prod-tls", "prod-cell")
# Everything that can be applied; the first two are the base and its ScaledObjects.
KUSTOMIZATIONS = (
    "knative",
    "keda",
    *(f"knative/overlays/{name}" for name in OVERLAYS),
    "knative/front",
    "knative/cluster/kourier",
    "knative/cluster/istio",
)
# Outside of them: for Argo CD, for the Prometheus operator, and examples.
_OTHERS = (
    "monitoring/*.yaml",
    "monitoring/*/*.yaml",
    "argocd/*.yaml",
    "knative/examples/*.yaml",
    "knative/examples/*/*.yaml",
)


def rendered(kustomization: str, root: Path = ROOT) -> list[Document]:
    """Return the objects of a kustomization, given its path in the checkout."""
    return [resource.document for resource in render(root / kustomization)]


def others(root: Path = ROOT) -> list[Document]:
    """Return the objects outside all kustomizations: examples, and those of other operators."""
    return [
        document
        for pattern in _OTHERS
        for path in sorted(root.glob(pattern))
        for document in documents(path)
        if {"apiVersion", "kind", "metadata"} <= set(document)
    ]


def label(document: Document) -> str:
    """Return `Kind/name`."""
    return f"{document['kind']}/{document['metadata']['name']}"
