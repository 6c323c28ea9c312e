"""The manifests against typed models of the controllers' objects, as far as those come as packages."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from manifests.overlays import label, rendered

if TYPE_CHECKING:
    from pydantic import BaseModel

with warnings.catch_warnings():
    # The generated models shadow attributes of their base class.
    warnings.simplefilter("ignore")
    from cloudcoil.models.keda import v1alpha1 as keda
    from cloudcoil.models.knative_eventing.eventing import v1 as eventing
    from cloudcoil.models.knative_eventing.sources import v1 as sources
    from cloudcoil.models.knative_serving.serving import v1 as serving

MODELS: dict[tuple[str, str], type[BaseModel]] = {
    ("serving.knative.dev/v1", "Service"): serving.Service,
    ("eventing.knative.dev/v1", "Broker"): eventing.Broker,
    ("eventing.knative.dev/v1", "Trigger"): eventing.Trigger,
    ("sources.knative.dev/v1", "SinkBinding"): sources.SinkBinding,
    ("sources.knative.dev/v1", "PingSource"): sources.PingSource,
    ("keda.sh/v1alpha1", "ScaledObject"): keda.ScaledObject,
    ("keda.sh/v1alpha1", "TriggerAuthentication"): keda.TriggerAuthentication,
}
# Unknown to the models: `fallback.behavior` and the HPA's `tolerance` are newer than they are,
# and Knative's schema keeps `delivery.timeout` as an unknown field (feature delivery-timeout).
NEWER = (".spec.fallback.behavior", ".tolerance", ".spec.delivery.timeout")


def documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{Path(kustomization).name}-{label(document)}")
        for kustomization in ("knative", "knative/overlays/dev", "knative/overlays/prod-gpu")
        for document in rendered(kustomization)
        if (document["apiVersion"], document["kind"]) in MODELS
    ]


def dropped(document: object, model: object, path: str = "") -> list[str]:
    """Return the fields that the schema does not know: the models ignore them silently."""
    if isinstance(document, dict) and isinstance(model, dict):
        return [
            lost
            for name, value in document.items()
            for lost in (
                dropped(value, model[name], f"{path}.{name}")
                if name in model
                else [f"{path}.{name}"]
            )
        ]
    if isinstance(document, list) and isinstance(model, list):
        return [
            lost
            for number, value in enumerate(document)
            for lost in dropped(value, model[number], f"{path}[{number}]")
        ]
    return []


@pytest.mark.parametrize("document", documents())
def test_manifest_follows_its_schema(document: dict[str, Any]) -> None:
    model = MODELS[document["apiVersion"], document["kind"]].model_validate(document)
    lost = dropped(document, model.model_dump(by_alias=True, exclude_none=True, mode="json"))
    assert [one for one in lost if not one.endswith(NEWER)] == []
