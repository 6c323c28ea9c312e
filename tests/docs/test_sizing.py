"""docs/sizing.md: its connections are those of the manifests."""

from __future__ import annotations

import re
from typing import Any

from manifests.overlays import rendered
from tests.docs.pages import ROOT

MAX_SCALE = "autoscaling.knative.dev/max-scale"
POOL_SIZE = "LOWTIDE_DATABASE_POOL_SIZE"
DEFAULT_POOL = 8


def pool_size(pod: dict[str, Any]) -> int:
    variables = pod["spec"]["containers"][0].get("env", [])
    return next((int(one["value"]) for one in variables if one["name"] == POOL_SIZE), DEFAULT_POOL)


def test_connections_are_those_of_the_base() -> None:
    objects = [*rendered("knative/base"), *rendered("keda")]
    pods = [
        (one["kind"], one["metadata"]["name"], one["spec"]["template"])
        for one in objects
        if one["kind"] in {"Service", "Deployment"} and "template" in one["spec"]
    ]
    replicas = {
        one["metadata"]["name"]: one["spec"]["maxReplicaCount"]
        for one in objects
        if one["kind"] == "ScaledObject"
    }
    functions = sum(
        int(pod["metadata"]["annotations"][MAX_SCALE]) * pool_size(pod)
        for kind, _, pod in pods
        if kind == "Service"
    )
    workers = sum(replicas[name] * pool_size(pod) for _, name, pod in pods if name in replicas)
    portal = sum(pool_size(pod) for _, name, pod in pods if name == "portal")
    page = (ROOT / "docs/sizing.md").read_text(encoding="utf-8")
    stated = re.search(r"(\d+) \(functions (\d+), workers (\d+), portal (\d+)\)", page)
    assert stated is not None
    assert [int(number) for number in stated.groups()] == [
        functions + workers + portal, functions, workers, portal
    ]  # fmt: skip
