"""Checks of references between objects: names, keys, ports, selectors, numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lowtide.cells.parsing import parse as parse_cells
from lowtide.core.durations import parse_seconds
from lowtide.core.yaml_files import InvalidFile
from lowtide.identity.parsing import parse as parse_issuers
from lowtide.settings import unknown_variables
from manifests import fleets, needs
from manifests.fleets import FLEETS
from manifests.objects import Objects
from manifests.overlays import label
from manifests.pods import KNATIVE, selects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lowtide.local.rendering import Document
    from manifests.pods import Template

_GPU = "nvidia.com/gpu"
# cert-manager starts these pods while its authority checks a host.
_SOLVER = {"acme.cert-manager.io/http01-solver": "true"}


def findings(documents: Sequence[Document]) -> list[tuple[str, str]]:
    """Return dangling references and contradictions, as pairs of object and problem."""
    objects = Objects(documents)
    found = [
        (label(template.owner), one)
        for template in objects.templates
        for one in needs.findings(template, objects)
    ]
    for document in documents:
        check = _CHECKS.get(document["kind"])
        if check is not None:
            found += [(label(document), one) for one in check(document, objects)]
    return found


def _service(document: Document, objects: Objects) -> Iterator[str]:
    if document["apiVersion"] != "v1":
        return
    spec = document["spec"]
    chosen = [
        one for one in objects.templates if selects({"matchLabels": spec["selector"]}, one.labels)
    ]
    if len(chosen) != 1:
        yield f"selects the pods of {len(chosen)} workloads"
    for port in spec["ports"]:
        for template in chosen:
            if not _has_port(template, port.get("targetPort", port["port"])):
                yield f"port {port.get('targetPort')} does not exist in its pods"


def _has_port(template: Template, port: object) -> bool:
    return any(
        port in (one.get("name"), one["containerPort"])
        for container in template.containers
        for one in container.get("ports", [])
    )


def _selecting(document: Document, objects: Objects) -> Iterator[str]:
    spec = document["spec"]
    selector = spec["podSelector" if document["kind"] == "NetworkPolicy" else "selector"]
    chosen = [one for one in objects.templates if selects(selector, one.labels)]
    if not chosen and not selects(selector, _SOLVER):
        yield "selects no pods"
    for rule in spec.get("ingress", []):
        yield from _policy_ports(rule, chosen)


def _policy_ports(rule: Document, chosen: Sequence[Template]) -> Iterator[str]:
    for port in rule.get("ports", []):
        name = port["port"]
        if isinstance(name, str) and not all(_has_port(one, name) for one in chosen):
            yield f"port {name} does not exist in every selected pod"


def _trigger(document: Document, objects: Objects) -> Iterator[str]:
    spec = document["spec"]
    if not objects.named("Broker", spec["broker"]):
        yield f"no Broker {spec['broker']}"
    yield from _destination(spec["subscriber"], objects)


def _source(document: Document, objects: Objects) -> Iterator[str]:
    yield from _destination(document["spec"]["sink"], objects)


def _role(document: Document, objects: Objects) -> Iterator[str]:
    if not objects.named("Role", document["roleRef"]["name"]):
        yield f"no Role {document['roleRef']['name']}"


def _destination(destination: Document, objects: Objects) -> Iterator[str]:
    reference = destination.get("ref")
    if reference is None:
        return
    group = reference["apiVersion"].partition("/")[0]
    if not objects.named(reference["kind"], reference["name"], group):
        yield f"no {reference['kind']} {reference['name']} of {reference['apiVersion']}"


def _scaled(document: Document, objects: Objects) -> Iterator[str]:
    spec = document["spec"]
    target = objects.named("Deployment", spec["scaleTargetRef"]["name"])
    if target is None:
        yield f"no Deployment {spec['scaleTargetRef']['name']}"
    elif "replicas" in target["spec"]:
        yield "its Deployment sets replicas: each apply would override KEDA"
    for trigger in spec["triggers"]:
        name = trigger["authenticationRef"]["name"]
        authentication = objects.named("TriggerAuthentication", name)
        if authentication is None:
            yield f"no TriggerAuthentication {name}"
            continue
        for one in authentication["spec"]["secretTargetRef"]:
            if one["key"] not in objects.secrets.get(one["name"], set()):
                yield f"no key {one['key']} in Secret {one['name']}"


def _route(route: Document, objects: Objects) -> Iterator[str]:
    for parent in route["spec"]["parentRefs"]:
        gateway = objects.named("Gateway", parent["name"])
        if gateway is not None and parent.get("sectionName") not in {
            listener["name"] for listener in gateway["spec"]["listeners"]
        }:
            yield f"Gateway {parent['name']} has no listener {parent.get('sectionName')}"
    for number, rule in enumerate(route["spec"]["rules"]):
        for one in rule.get("filters", []):
            host = one.get("urlRewrite", {}).get("hostname", "")
            name, _, rest = host.partition(".")
            ours = f"{route['metadata']['namespace']}.svc.cluster.local"
            if host and (
                rest != ours or not objects.named("Service", name, KNATIVE.partition("/")[0])
            ):
                yield f"rule {number}: no Knative Service has the host {host}"
        for backend in rule.get("backendRefs", []):
            if "namespace" not in backend:
                if not objects.named("Service", backend["name"], "v1"):
                    yield f"rule {number}: {backend['name']} is not a known Service"
            elif not any(_grants(grant, route, backend) for grant in objects.grants):
                yield f"rule {number}: no ReferenceGrant for {backend['namespace']}/{backend['name']}"


def _grants(grant: Document, route: Document, backend: Document) -> bool:
    spec = grant["spec"]
    return (
        grant["metadata"]["namespace"] == backend["namespace"]
        and any(one["namespace"] == route["metadata"]["namespace"] for one in spec["from"])
        and any(one.get("name", backend["name"]) == backend["name"] for one in spec["to"])
    )


def _quota(document: Document, objects: Objects) -> Iterator[str]:
    wanted = 0
    for scaler in objects.all("ScaledObject"):
        name = scaler["spec"]["scaleTargetRef"]["name"]
        for template in objects.templates:
            if template.owner["metadata"]["name"] == name:
                each = sum(
                    int(one["resources"]["limits"].get(_GPU, 0)) for one in template.containers
                )
                wanted += each * scaler["spec"]["maxReplicaCount"]
    granted = int(document["spec"]["hard"][f"requests.{_GPU}"])
    if granted != wanted:
        yield f"grants {granted} GPUs, but the ScaledObjects may request {wanted}"


def _sink(document: Document, objects: Objects) -> Iterator[str]:
    """Yield a sink that is not an existing Broker: the ingress would answer 404."""
    sink = document["data"].get("K_SINK", "")
    namespace, _, broker = urlsplit(sink).path.strip("/").partition("/")
    if namespace != document["metadata"].get("namespace") or not objects.named("Broker", broker):
        yield f"K_SINK {sink} is not an existing Broker"


def _mistakes(data: dict[str, str], parse: Callable[[str, str], object]) -> Iterator[str]:
    """Yield the mistakes in files."""
    for name, content in data.items():
        try:
            parse(content, name)
        except InvalidFile as error:
            yield from error.problems


def _config_map(document: Document, objects: Objects) -> Iterator[str]:
    """Yield settings of the scheduler that contradict the ScaledObjects or the PingSources."""
    data: dict[str, Any] = document["data"]
    if document["metadata"]["name"] == FLEETS:
        return  # its file is compared with the ScaledObjects below
    if document["metadata"]["name"] in _FILES:
        yield from _mistakes(data, _FILES[document["metadata"]["name"]])
        return
    if unknown := unknown_variables(data):
        yield f"unknown settings {', '.join(unknown)}"
    yield from _sink(document, objects)
    yield from fleets.findings(data, objects)
    for ping in objects.all("PingSource"):
        seconds = re.fullmatch(r"\*/(\d+)( \*){5}", ping["spec"]["schedule"])
        if seconds is None or float(seconds.group(1)) != parse_seconds(data["LOWTIDE_TICK"]):
            yield f"LOWTIDE_TICK does not match the schedule {ping['spec']['schedule']}"


_FILES: dict[str, Callable[[str, str], object]] = {
    "lowtide-identity": parse_issuers,
    "lowtide-cells": parse_cells,
}
_CHECKS: dict[str, Callable[[Document, Objects], Iterator[str]]] = {
    "Service": _service,
    "NetworkPolicy": _selecting,
    "PodDisruptionBudget": _selecting,
    "Trigger": _trigger,
    "PingSource": _source,
    "ScaledObject": _scaled,
    "HTTPRoute": _route,
    "RoleBinding": _role,
    "ResourceQuota": _quota,
    "ConfigMap": _config_map,
}
