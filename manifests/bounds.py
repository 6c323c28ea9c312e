"""Scaling bounds of each overlay: `python -m manifests.bounds` writes its ScaledObject patches.

An overlay sets its maximum of replicas once, in its ConfigMap, where the scheduler reads it.
KEDA's values follow: `maxReplicaCount`, and a query that counts no further than that many replicas
need. The query's text is the base's, so that it has a single source.
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

SCALED = ("stage", "prod")  # the others inherit the bounds of their base
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
    """Return the path of the patch of a pool's ScaledObject."""
    return root / f"knative/overlays/{overlay}/scale-{pool.value}.yaml"


def write(root: Path = ROOT) -> None:
    """Write all patches."""
    for overlay in SCALED:
        for pool in Pool:
            path(pool, overlay, root).write_text(patch(pool, overlay, root))


def stale(root: Path = ROOT) -> list[str]:
    """Return the paths of the patches that differ from what `write` would write."""
    return [
        str(path(pool, overlay, root).relative_to(root))
        for overlay in SCALED
        for pool in Pool
        if path(pool, overlay, root).read_text() != patch(pool, overlay, root)
    ]


if __name__ == "__main__":
    write()
