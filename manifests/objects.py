"""The objects that are applied together, and the objects that exist before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manifests.overlays import rendered
from manifests.pods import templates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.local.rendering import Document

_SECRETS = "knative/components/external-secrets"


class Objects:
    """The objects that are applied together, and the Secrets and grants that exist before them."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self.templates = list(templates(documents))
        # The keys that each must have.
        self.secrets: dict[str, set[str]] = {
            document["spec"]["target"]["name"]: {
                one["secretKey"] for one in document["spec"].get("data", [])
            }
            for document in rendered(_SECRETS)
        }
        self.grants: list[Document] = []
        for gateway in ("kourier", "istio"):
            self.grants += rendered(f"knative/cluster/{gateway}")

    def named(self, kind: str, name: str, group: str | None = None) -> Document | None:
        """Return the object of this kind and name; None if there is none."""
        for document in self.documents:
            same = (document["kind"], document["metadata"]["name"]) == (kind, name)
            if same and group in {None, document["apiVersion"].partition("/")[0]}:
                return document
        return None

    def keys(self, kind: str, name: str) -> set[str] | None:
        """Return the keys of a ConfigMap or Secret; None if it does not exist."""
        if kind == "Secret":
            return self.secrets.get(name)
        found = self.named(kind, name)
        return None if found is None else set(found["data"])

    def all(self, kind: str) -> list[Document]:
        """Return every object of this kind."""
        return [document for document in self.documents if document["kind"] == kind]
