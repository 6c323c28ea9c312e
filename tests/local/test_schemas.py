"""The manifests against the controllers' own schemas, as far as those come as packages."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
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

KUBERNETES = "1.36"
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
    kind = (document["apiVersion"], document["kind"])
    if kind in MODELS:
        model = MODELS[kind].model_validate(document)
        lost = dropped(document, model.model_dump(by_alias=True, exclude_none=True, mode="json"))
        assert [one for one in lost if not one.endswith(NEWER)] == []
    elif kind[1] != "HTTPRoute":  # no package holds the Gateway API's schema
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", documents())
def test_every_container_is_locked_down_and_bounded(document: dict[str, Any]) -> None:
    template = document.get("spec", {}).get("template", {})
    for container in template.get("spec", {}).get("containers", []):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert set(container["resources"]) == {"requests", "limits"}


@pytest.mark.parametrize("document", documents())
def test_knatives_webhook_has_nothing_to_refuse(document: dict[str, Any]) -> None:
    if document["apiVersion"] != "serving.knative.dev/v1":
        return
    spec = document["spec"]["template"]["spec"]
    refused = {"nodeSelector", "tolerations", "affinity", "securityContext", "priorityClassName"}
    assert not refused & set(spec)
    assert "terminationGracePeriodSeconds" not in spec
    assert spec["timeoutSeconds"] <= 600
    (container,) = spec["containers"]
    assert len(container["ports"]) == 1
    assert "PORT" not in {variable["name"] for variable in container["env"]}
