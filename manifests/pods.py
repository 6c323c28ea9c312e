"""The pod templates in a set of objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lowtide.local.rendering import Document

KNATIVE = "serving.knative.dev/v1"


@dataclass(frozen=True, slots=True)
class Template:
    """A pod template, the labels of its pods, and the object that owns it."""

    owner: Document
    spec: Document
    labels: dict[str, str]

    @property
    def containers(self) -> list[Document]:
        """Every container, init containers included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def is_knative(self) -> bool:
        """True if Knative creates the Deployment."""
        return bool(self.owner["apiVersion"] == KNATIVE)


def templates(documents: Iterable[Document]) -> Iterator[Template]:
    """Return the pod template of every object that has one."""
    for document in documents:
        if document["kind"] not in {"Deployment", "Job", "Service"}:
            continue
        template: Any = document["spec"].get("template")
        if template is None:
            continue
        labels = dict(template.get("metadata", {}).get("labels", {}))
        if document["apiVersion"] == KNATIVE:
            labels["serving.knative.dev/service"] = document["metadata"]["name"]
        yield Template(document, template["spec"], labels)


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Return True if a label selector matches; an empty one matches all."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for one in selector.get("matchExpressions", []):
        value, values = labels.get(one["key"]), one.get("values", [])
        passes = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not passes[one["operator"]]:
            return False
    return True
