"""Checks of the ScaledObjects against the fleets, as the functions read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lowtide.core.pools import Pool
from lowtide.core.yaml_files import InvalidFile
from lowtide.fleets import render
from lowtide.fleets.file import default_fleet
from lowtide.fleets.model import Fleets
from lowtide.fleets.parsing import parse, read_file
from lowtide.local.autoscaler import limits_of
from lowtide.settings import PREFIX, Settings
from manifests.overlays import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lowtide.fleets.model import PoolSpec
    from lowtide.local.rendering import Document
    from manifests.objects import Objects

FLEETS: Final = "lowtide-fleets"


def findings(config: Mapping[str, str], objects: Objects) -> Iterator[str]:
    """Yield the differences between fleets and ScaledObjects; `config` holds the settings."""
    values: dict[str, Any] = {
        name: config[PREFIX + name.upper()]
        for name in Settings.model_fields
        if PREFIX + name.upper() in config
    }
    settings = Settings(**values)
    file = objects.named("ConfigMap", FLEETS)
    try:
        fleets = (
            Fleets((default_fleet(settings),))
            if file is None
            else parse(file["data"]["fleets.yaml"], settings).fleets
        )
    except InvalidFile as error:
        yield from error.problems
        return
    scalers = {_lane(scaler): scaler for scaler in objects.all("ScaledObject")}
    expected = {(fleet.name, pool.value): fleet.pool(pool) for fleet in fleets for pool in Pool}
    if scalers and scalers.keys() != expected.keys():
        different = sorted(scalers.keys() ^ expected.keys())
        yield f"fleets and ScaledObjects differ in {', '.join(map('/'.join, different))}"
    for lane in scalers.keys() & expected.keys():
        yield from _bounds(scalers[lane], expected[lane])


def stale(root: Path = ROOT) -> list[str]:
    """Return the files in `knative/fleets/` that differ from what `lowtide fleets render` writes."""
    folder = root / "knative/fleets"
    file = read_file(folder / "fleets.yaml", Settings.model_construct())
    return render.stale(render.render(file, root), folder)


def _lane(scaler: Document) -> tuple[str, str]:
    labels = scaler["metadata"]["labels"]
    return labels["lowtide.dev/fleet"], labels["lowtide.dev/pool"]


def _bounds(scaler: Document, pool: PoolSpec) -> Iterator[str]:
    spec, name = scaler["spec"], scaler["metadata"]["name"]
    metadata = spec["triggers"][0]["metadata"]
    limit = spec["maxReplicaCount"] * int(metadata["targetQueryValue"])
    for field, value, theirs in (
        ("min_replicas", pool.min_replicas, spec["minReplicaCount"]),
        ("max_replicas", pool.max_replicas, spec["maxReplicaCount"]),
        ("rows_per_replica", pool.rows_per_replica, int(metadata["targetQueryValue"])),
    ):
        if value != theirs:
            yield f"{field} is {value}, but {theirs} in ScaledObject {name}: set it in fleets.yaml or in the settings"
    if set(limits_of(metadata["query"])) != {limit}:
        yield f"the query of {name} does not stop counting at {limit}"
