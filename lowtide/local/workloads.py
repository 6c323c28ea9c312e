"""The workloads of the manifests, flattened for one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from lowtide.core.pools import Pool
from lowtide.local import manifests as kinds
from lowtide.local.fleets import worker_objects
from lowtide.local.options import BadManifest
from lowtide.local.rendering import Resource, render

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lowtide.fleets.parsing import ParsedFile


OVERLAY = "knative/overlays/dev"
FLEETS = "knative/fleets"
_WORKERS = frozenset(f"infer-{pool.value}" for pool in Pool)

_KINDS: dict[tuple[str, str], type[kinds.Part]] = {
    ("serving.knative.dev/v1", "Service"): kinds.KnativeService,
    ("v1", "Service"): kinds.CoreService,
    ("apps/v1", "Deployment"): kinds.Deployment,
    ("v1", "ConfigMap"): kinds.ConfigMap,
    ("eventing.knative.dev/v1", "Trigger"): kinds.Trigger,
    ("sources.knative.dev/v1", "PingSource"): kinds.PingSource,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): kinds.HttpRoute,
    ("keda.sh/v1alpha1", "ScaledObject"): kinds.ScaledObject,
    ("keda.sh/v1alpha1", "TriggerAuthentication"): kinds.TriggerAuthentication,
}

P = TypeVar("P", bound=kinds.Part)


class Manifests:
    """The manifests that one machine supports, in the order of the kustomizations."""

    def __init__(self, objects: list[kinds.Part]) -> None:
        self._objects = objects

    def all(self, kind: type[P]) -> list[P]:
        """Return every object of this kind."""
        return [item for item in self._objects if isinstance(item, kind)]


def load(root: Path, fleets: ParsedFile | None = None) -> Manifests:
    """Render the development overlay and read its objects; other kinds are skipped.

    Workers of declared fleets replace those of the default one. Raises BadManifest, naming the file
    and the field.
    """
    resources = render(root / OVERLAY)
    if fleets is not None:
        resources = [one for one in resources if one.document["metadata"]["name"] not in _WORKERS]
        resources += [Resource(one, root / FLEETS) for one in worker_objects(root, fleets)]
    objects: list[kinds.Part] = []
    for resource in resources:
        document = resource.document
        kind = _KINDS.get((document.get("apiVersion", ""), document["kind"]))
        if kind is None:
            continue
        try:
            objects.append(msgspec.convert(document, kind))
        except msgspec.ValidationError as error:
            raise BadManifest(f"{resource.origin}: {error}") from error
    return Manifests(objects)


MIN_SCALE = "autoscaling.knative.dev/min-scale"
_LONGEST_GRACE = 25.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Replicas of one container.

    `services` are the names that events and requests are routed by; `replicas` is the initial
    count, and `scaled` is True if a ScaledObject changes it. Without a `ready_path`, a replica is
    ready once its port accepts connections. `grace` is in seconds.
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
    result = [_function(service) for service in manifests.all(kinds.KnativeService)]
    scaled = {
        scaler.spec.scale_target_ref.name: scaler.spec.min_replica_count
        for scaler in manifests.all(kinds.ScaledObject)
    }
    deployments = manifests.all(kinds.Deployment)
    if unknown := set(scaled) - {deployment.metadata.name for deployment in deployments}:
        raise BadManifest(f"ScaledObject without a Deployment: {', '.join(sorted(unknown))}")
    result += [_deployment(deployment, manifests, scaled) for deployment in deployments]
    return result


def _function(service: kinds.KnativeService) -> Workload:
    template = service.spec.template
    # At least one replica, so that a laptop answers its first request without a cold start.
    replicas = max(1, int(template.metadata.annotations.get(MIN_SCALE, "1")))
    return Workload(
        name=service.metadata.name,
        kind="Service",
        labels=service.metadata.labels,
        container=template.spec.containers[0],
        services=(service.metadata.name,),
        replicas=replicas,
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
