"""How far each overlay scales: `python -m manifests.bounds` writes the patches of its ScaledObjects.

An overlay says how many replicas it wants once, in its ConfigMap, where the scheduler reads it. What
KEDA needs follows: `maxReplicaCount`, and a query that counts no further than that many replicas need.
The query's text is the base's, so that there is one to change.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from lowtide.core.pools import Pool
from lowtide.local.autoscaler import limited
from lowtide.local.rendering import documents
from manifests.overlays import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SCALED = ("stage", "prod")  # the others have the bounds that they build on
_WIDTH = 90


def patch(pool: Pool, overlay: str, root: Path = ROOT) -> str:
    """Return the JSON patch of a pool's ScaledObject in an overlay."""
    (base,) = documents(root / f"keda/infer-{pool.value}.yaml")
    (config,) = documents(root / f"knative/overlays/{overlay}/config.yaml")
    metadata = base["spec"]["triggers"][0]["metadata"]
    most = int(config["data"][f"LOWTIDE_{pool.value.upper()}_REPLICAS"])
    query = limited(metadata["query"], most * int(metadata["targetQueryValue"]))
    lines = textwrap.indent(textwrap.fill(query, _WIDTH, break_on_hyphens=False), "    ")
    return (
        "# Written by `python -m manifests.bounds`, from config.yaml and the query in keda/.\n"
        "- op: replace\n"
        "  path: /spec/maxReplicaCount\n"
        f"  value: {most}\n"
        "- op: replace\n"
        "  path: /spec/triggers/0/metadata/query\n"
        f"  value: >-\n{lines}\n"
    )


def path(pool: Pool, overlay: str, root: Path = ROOT) -> Path:
    """Return where the patch of a pool's ScaledObject lies."""
    return root / f"knative/overlays/{overlay}/scale-{pool.value}.yaml"


def write(root: Path = ROOT) -> None:
    """Write all patches anew."""
    for overlay in SCALED:
        for pool in Pool:
            path(pool, overlay, root).write_text(patch(pool, overlay, root))


def stale(root: Path = ROOT) -> list[str]:
    """Return the patches that are not what would be written."""
    return [
        str(path(pool, overlay, root).relative_to(root))
        for overlay in SCALED
        for pool in Pool
        if path(pool, overlay, root).read_text() != patch(pool, overlay, root)
    ]


if __name__ == "__main__":
    write()
