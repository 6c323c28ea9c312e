"""Validation of custom resources against typed models, where a package has them.

The models are a second reading of the same API. They lag behind the schemas of `schemas.py`: each
is of an older version and lacks a few fields.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

if TYPE_CHECKING:
    from lowtide.local.rendering import Document

PACKAGES = {
    "serving.knative.dev/v1": "cloudcoil.models.knative_serving.serving.v1",
    "eventing.knative.dev/v1": "cloudcoil.models.knative_eventing.eventing.v1",
    "sources.knative.dev/v1": "cloudcoil.models.knative_eventing.sources.v1",
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
}
# `fallback.behavior` and the HPA's `tolerance` are newer than the models; Knative's schema keeps
# `delivery.timeout` without naming it (feature delivery-timeout).
NEWER = (".spec.fallback.behavior", ".tolerance", ".spec.delivery.timeout")


def findings(document: Document) -> list[str]:
    """Return the model's validation errors, and the fields that it does not know."""
    package = PACKAGES.get(document["apiVersion"])
    if package is None:
        return []
    try:
        model = _model(package, document["kind"]).model_validate(document)
    except ValidationError as error:
        return [f"typed model: {one['loc']}: {one['msg']}" for one in error.errors()]
    kept = model.model_dump(by_alias=True, exclude_none=True, mode="json")
    lost = [one for one in _lost(document, kept) if not one.endswith(NEWER)]
    return [f"typed model: {one} is unknown" for one in lost]


@cache
def _model(package: str, kind: str) -> Any:
    with warnings.catch_warnings():
        # The generated models shadow attributes of their base class.
        warnings.simplefilter("ignore")
        return getattr(import_module(package), kind)


def _lost(document: object, kept: object, path: str = "") -> list[str]:
    """Return the fields that a model drops silently."""
    if isinstance(document, dict) and isinstance(kept, dict):
        return [
            lost
            for name, value in document.items()
            for lost in (
                _lost(value, kept[name], f"{path}.{name}") if name in kept else [f"{path}.{name}"]
            )
        ]
    if isinstance(document, list) and isinstance(kept, list):
        return [
            lost
            for number, value in enumerate(document)
            for lost in _lost(value, kept[number], f"{path}[{number}]")
        ]
    return []
