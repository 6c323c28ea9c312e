"""What has to run: each Knative Service and Deployment, flattened for one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.local import manifests as kinds
from lowtide.local.errors import BadManifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.local.kustomize import Manifests

MIN_SCALE = "autoscaling.knative.dev/min-scale"
_LONGEST_GRACE = 25.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Replicas of one container.

    `services` are the names that events and requests reach it by, `replicas` the count to start
    with, `scaled` whether a ScaledObject moves that count; `ready_path` is None where readiness
    means that the port takes connections. `grace` is in seconds.
    """

    name: str
    kind: str
    labels: Mapping[str, str]
    container: kinds.Container
    services: tuple[str, ...]
    replicas: int
    scaled: bool
    grace: float
    ready_path: str | None


def workloads(manifests: Manifests) -> list[Workload]:
    """Return every workload; raises BadManifest for a ScaledObject without its Deployment."""
    found = [_function(service) for service in manifests.all(kinds.KnativeService)]
    scaled = {
        scaler.spec.scale_target_ref.name: scaler.spec.min_replica_count
        for scaler in manifests.all(kinds.ScaledObject)
    }
    deployments = manifests.all(kinds.Deployment)
    if unknown := set(scaled) - {deployment.metadata.name for deployment in deployments}:
        raise BadManifest(f"ScaledObject without its Deployment: {', '.join(sorted(unknown))}")
    found += [_deployment(deployment, manifests, scaled) for deployment in deployments]
    return found


def _function(service: kinds.KnativeService) -> Workload:
    template = service.spec.template
    # Nothing scales from zero here: a laptop should answer its first request at once.
    least = max(1, int(template.metadata.annotations.get(MIN_SCALE, "1")))
    return Workload(
        name=service.metadata.name,
        kind="Service",
        labels=service.metadata.labels,
        container=template.spec.containers[0],
        services=(service.metadata.name,),
        replicas=least,
        scaled=False,
        grace=min(template.spec.timeout_seconds, _LONGEST_GRACE),
        ready_path=_ready_path(template.spec.containers[0]),
    )


def _deployment(
    deployment: kinds.Deployment, manifests: Manifests, scaled: Mapping[str, int]
) -> Workload:
    template, name = deployment.spec.template, deployment.metadata.name
    replicas = deployment.spec.replicas
    return Workload(
        name=name,
        kind="Deployment",
        labels=deployment.metadata.labels,
        container=template.spec.containers[0],
        services=tuple(
            service.metadata.name
            for service in manifests.all(kinds.CoreService)
            if service.spec.selector
            and service.spec.selector.items() <= template.metadata.labels.items()
        ),
        replicas=scaled.get(name, 1 if replicas is None else replicas),
        scaled=name in scaled,
        grace=min(template.spec.termination_grace_period_seconds, _LONGEST_GRACE),
        ready_path=_ready_path(template.spec.containers[0]),
    )


def _ready_path(container: kinds.Container) -> str | None:
    probe = container.readiness_probe.http_get
    return probe.path if probe else None
