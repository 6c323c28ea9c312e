"""All rules that need only the objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manifests import events, knative, references, schemas, security
from manifests.overlays import label
from manifests.pods import KNATIVE, templates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.local.rendering import Document


def findings(documents: Sequence[Document]) -> list[str]:
    """Return the problems of objects that are applied together, as `Kind/name: problem`."""
    found = [(label(document), one) for document in documents for one in schemas.findings(document)]
    if found:
        # The other checks rely on valid schemas.
        return [f"{where}: {one}" for where, one in found]
    for document in documents:
        found += [(label(document), one) for one in events.findings(document)]
        if document["apiVersion"] == KNATIVE:
            found += [(label(document), one) for one in knative.findings(document)]
    found += [
        (label(template.owner), one)
        for template in templates(documents)
        for one in security.findings(template)
    ]
    # A set without a Namespace refers to objects of other sets.
    if any(document["kind"] == "Namespace" for document in documents):
        found += references.findings(documents)
    return [f"{where}: {one}" for where, one in found]
