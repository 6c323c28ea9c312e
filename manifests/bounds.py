"""The ScaledObjects of the default fleet: `python -m manifests.bounds` writes them.

Those in `keda/` come from the template of all fleets, with the bounds of the base's ConfigMap. An overlay sets its maximum of replicas once, in its ConfigMap, where the scheduler reads it.
KEDA's values follow: `maxReplicaCount`, and a query that counts no further than that many replicas
need. The query's text is the base's, so that it has a single source.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.fleets.file import default_fleet
from lowtide.fleets.scaling import scaled_object
from lowtide.local.autoscaler import limited
from lowtide.local.rendering import documents
from lowtide.settings import PREFIX, Settings
from manifests.overlays import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SCALED = ("stage", "prod")  # the others inherit the bounds of their base
_WIDTH = 90


def patch(pool: Pool, overlay: str, root: Path = ROOT) -> str:
    """Return the JSON patch of a pool's ScaledObject in an overlay."""
    (scaler,) = documents(root / f"keda/infer-{pool.value}.yaml")
    (config,) = documents(root / f"knative/overlays/{overlay}/config.yaml")
    metadata = scaler["spec"]["triggers"][0]["metadata"]
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


def base(pool: Pool, root: Path = ROOT) -> str:
    """Return the ScaledObject of a pool of the default fleet."""
    (config,) = documents(root / "knative/base/config.yaml")
    prefix = f"{PREFIX}{pool.value.upper()}"
    spec = replace(
        default_fleet(Settings.model_construct()).pool(pool),
        max_replicas=int(config["data"][f"{prefix}_REPLICAS"]),
        rows_per_replica=int(config["data"][f"{prefix}_ROWS_PER_REPLICA"]),
    )
    name = f"infer-{pool.value}"
    return scaled_object(
        root, DEFAULT_FLEET, pool, spec, name=name, writer="python -m manifests.bounds"
    )


def _files(root: Path) -> Iterator[tuple[Path, Callable[[], str]]]:
    """Yield each file and its text; the patches are made from the files before them."""
    for pool in Pool:
        yield root / f"keda/infer-{pool.value}.yaml", partial(base, pool, root)
    for overlay in SCALED:
        for pool in Pool:
            path = root / f"knative/overlays/{overlay}/scale-{pool.value}.yaml"
            yield path, partial(patch, pool, overlay, root)


def write(root: Path = ROOT) -> None:
    """Write all files."""
    for path, text in _files(root):
        path.write_text(text())


def stale(root: Path = ROOT) -> list[str]:
    """Return the paths of the files that differ from what `write` would write."""
    return [
        str(path.relative_to(root)) for path, text in _files(root) if path.read_text() != text()
    ]


if __name__ == "__main__":
    write()
