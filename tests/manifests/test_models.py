"""The manifests against typed models of the controllers' objects, where packages exist."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from manifests import models
from manifests.overlays import label, rendered

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.local.rendering import Document

KUSTOMIZATIONS = ("knative/overlays/dev", "knative/overlays/prod-gpu")


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS, ids=lambda one: Path(one).name)
def test_manifests_conform_to_models(kustomization: str) -> None:
    documents = [one for one in rendered(kustomization) if one["apiVersion"] in models.PACKAGES]
    assert len(documents) > 10
    assert {label(one): models.findings(one) for one in documents if models.findings(one)} == {}


@pytest.mark.parametrize(
    ("name", "break_it", "message"),
    [
        ("Broker/default", lambda one: one["spec"].update(retries=1), ".spec.retries is unknown"),
        ("ScaledObject/infer-spot", lambda one: one["spec"].update(triggers={}), "triggers"),
    ],
    ids=["unknown field", "wrong type"],
)
def test_violation_of_model_is_reported(
    name: str, break_it: Callable[[Document], Any], message: str
) -> None:
    (document,) = (one for one in rendered(KUSTOMIZATIONS[0]) if label(one) == name)
    broken = copy.deepcopy(document)
    break_it(broken)
    assert any(message in one for one in models.findings(broken))
