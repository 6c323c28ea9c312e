"""The manifests as typed objects: what the overlay for development says runs on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from lowtide.local import manifests as kinds
from lowtide.local.errors import BadManifest
from lowtide.local.rendering import render

if TYPE_CHECKING:
    from pathlib import Path

OVERLAY = "knative/overlays/dev"

_KINDS: dict[tuple[str, str], type[kinds.Part]] = {
    ("serving.knative.dev/v1", "Service"): kinds.KnativeService,
    ("v1", "Service"): kinds.CoreService,
    ("apps/v1", "Deployment"): kinds.Deployment,
    ("v1", "ConfigMap"): kinds.ConfigMap,
    ("eventing.knative.dev/v1", "Trigger"): kinds.Trigger,
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
    """Read what the overlay for development renders to; other kinds are skipped.

    Raises BadManifest, naming the file and the field.
    """
    objects: list[kinds.Part] = []
    for resource in render(root / OVERLAY):
        document = resource.document
        kind = _KINDS.get((document.get("apiVersion", ""), document["kind"]))
        if kind is None:
            continue
        try:
            objects.append(msgspec.convert(document, kind))
        except msgspec.ValidationError as error:
            raise BadManifest(f"{resource.origin}: {error}") from error
    return Manifests(objects)
