"""References of a pod template to other objects: accounts, volumes, keys, ports."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from lowtide.core.durations import parse_seconds
from lowtide.settings import unknown_variables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.local.rendering import Document
    from manifests.objects import Objects
    from manifests.pods import Template


_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def findings(template: Template, objects: Objects) -> Iterator[str]:
    """Return the missing objects that a pod refers to, and values that contradict each other."""
    spec = template.spec
    name = template.owner["metadata"]["name"]
    if not _LABEL.fullmatch(name):
        yield f"{name} is not a DNS label, so the API server warns"
    if not objects.named("ServiceAccount", spec.get("serviceAccountName", "default")):
        yield f"no ServiceAccount {spec.get('serviceAccountName', 'default')}"
    priority = spec.get("priorityClassName")
    if priority and not objects.named("PriorityClass", priority):
        yield f"no PriorityClass {priority}"
    for volume in spec.get("volumes", []):
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and not objects.named("PersistentVolumeClaim", claim):
            yield f"no PersistentVolumeClaim {claim}"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in template.containers:
        for one in _container(container, volumes, objects):
            yield f"container {container['name']}: {one}"
    yield from _numbers(template)


def _numbers(template: Template) -> Iterator[str]:
    spec = template.spec
    grace = spec.get("terminationGracePeriodSeconds", 30)
    for container in spec["containers"]:
        worker = _plain(container).get("LOWTIDE_WORKER_GRACE", "")
        # After this grace, the worker writes its last results and closes its lease.
        if worker and (parse_seconds(worker) or 0.0) + 15 > grace:
            yield f"LOWTIDE_WORKER_GRACE {worker} leaves less than 15 s of the grace period of {grace} s"
    if template.is_knative:
        environment = _plain(spec["containers"][0])
        limit = str(spec.get("containerConcurrency"))
        names = ["THREADS"]
        if "LOWTIDE_DATABASE_URL" in environment:
            names.append("LOWTIDE_DATABASE_POOL_SIZE")
        if {environment.get(name) for name in names} != {limit}:
            yield f"containerConcurrency and {' and '.join(names)} differ"


def _plain(container: Document) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container.get("env", [])}


def _container(container: Document, volumes: set[str], objects: Objects) -> Iterator[str]:
    yield from _environment(container, objects)
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"no volume {mount['name']}"
    yield from _nested(container.get("volumeMounts", []))
    if unknown := unknown_variables(_plain(container)):
        yield f"unknown settings {', '.join(unknown)}"
    named = {port["name"] for port in container.get("ports", []) if "name" in port}
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        for action in ("httpGet", "tcpSocket"):
            port = container.get(probe, {}).get(action, {}).get("port")
            if isinstance(port, str) and port not in named:
                yield f"{probe} uses port {port}, which does not exist"


def _nested(mounts: list[Document]) -> Iterator[str]:
    """Yield mounts inside a read-only one: the folder for them cannot be created there."""
    folders = [PurePosixPath(mount["mountPath"]) for mount in mounts if mount.get("readOnly")]
    for mount in mounts:
        for folder in folders:
            if folder in PurePosixPath(mount["mountPath"]).parents:
                yield f"the mount {mount['mountPath']} is inside {folder}, which is read-only"


def _environment(container: Document, objects: Objects) -> Iterator[str]:
    for source in container.get("envFrom", []):
        for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if field in source and objects.keys(kind, source[field]["name"]) is None:
                yield f"no {kind} {source[field]['name']}"
    for variable in container.get("env", []):
        for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            reference = variable.get("valueFrom", {}).get(field)
            if reference is None or reference.get("optional"):
                continue
            if reference["key"] not in (objects.keys(kind, reference["name"]) or set()):
                yield f"no key {reference['key']} in {kind} {reference['name']}"
