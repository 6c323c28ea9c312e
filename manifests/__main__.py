"""`make manifests`: render every kustomization, check every rule, and print the findings."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from lowtide.local.options import BadManifest
from manifests import bounds, check, fleets, kubectl, models, policies
from manifests.overlays import KUSTOMIZATIONS, label, others, rendered

if TYPE_CHECKING:
    from lowtide.local.rendering import Document


def main() -> int:
    """Run all checks; return the exit code, 1 with any finding."""
    began = time.monotonic()
    try:
        everything = {name: rendered(name) for name in KUSTOMIZATIONS}
    except BadManifest as error:
        print(error)
        return 1
    found = [f"{path} is stale: run python -m manifests.bounds" for path in bounds.stale()]
    found += [
        f"knative/fleets/{path} is stale: run lowtide fleets render --to knative/fleets"
        for path in fleets.stale()
    ]
    for name, documents in everything.items():
        found += [f"{name} {one}" for one in check.findings(documents)]
        for document in documents:
            found += [f"{name} {label(document)}: {one}" for one in models.findings(document)]
    found += check.findings(others())
    compared = 0
    if kubectl.available():
        for name, documents in everything.items():
            found += [f"{name} {one}" for one in kubectl.differences(name, documents)]
            compared += 1
    scanned = policies.scan(everything)
    found += policies.unexplained(scanned, policies.allowances())
    for finding in found:
        print(finding)
    _print_summary(everything, compared, len(scanned))
    print(f"{len(found)} findings in {time.monotonic() - began:.1f} s")
    return 1 if found else 0


def _print_summary(everything: dict[str, list[Document]], compared: int, scanned: int) -> None:
    objects = [document for documents in everything.values() for document in documents] + others()
    kinds = Counter(document["kind"] for document in objects)
    print(f"{len(everything)} kustomizations, {len(objects)} objects of {len(kinds)} kinds:")
    print("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    print(f"{compared} of them compared with kubectl's rendering")
    print(f"{scanned} checkov findings, each allowed in {policies.ALLOWED.name} or reported above")


if __name__ == "__main__":
    sys.exit(main())
