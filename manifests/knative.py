"""Rules by which the webhooks of Knative Serving 1.23 refuse a Service or warn about it.

Sources: `pkg/apis/serving` (fieldmask.go, k8s_validation.go), `pkg/apis/serving/v1` and
`pkg/apis/autoscaling` of knative/serving. Every feature flag has its default.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.local.rendering import Document

_LONGEST = 600  # max-revision-timeout-seconds
_FIRST_BYTE = 300  # revision-timeout-seconds: the most that responseStartTimeoutSeconds defaults to
_MOST_CONCURRENT = 1000
_REVISION = frozenset(
    [
        "containerConcurrency",
        "timeoutSeconds",
        "responseStartTimeoutSeconds",
        "idleTimeoutSeconds",
        "serviceAccountName",
        "containers",
        "volumes",
        "imagePullSecrets",
        "enableServiceLinks",
        "automountServiceAccountToken",
    ]
)
_CONTAINER = frozenset(
    [
        "name",
        "args",
        "command",
        "env",
        "workingDir",
        "envFrom",
        "image",
        "imagePullPolicy",
        "livenessProbe",
        "ports",
        "readinessProbe",
        "resources",
        "securityContext",
        "startupProbe",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "volumeMounts",
    ]
)
_CONTEXT = frozenset(
    [
        "capabilities",
        "readOnlyRootFilesystem",
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "allowPrivilegeEscalation",
        "seccompProfile",
        "privileged",
    ]
)
_WARNED = ("runAsNonRoot", "allowPrivilegeEscalation", "seccompProfile", "capabilities")
_VOLUMES = frozenset(["name", "secret", "configMap", "projected", "emptyDir"])
_RESERVED_VARIABLES = frozenset(["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"])
_RESERVED_PORTS = frozenset([8008, 8012, 8013, 8022, 8112, 9090, 9091])
_RESERVED_PATHS = frozenset(["/", "/dev", "/dev/log"])
_SCALING = "autoscaling.knative.dev/"
_MIN, _MAX = f"{_SCALING}min-scale", f"{_SCALING}max-scale"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def findings(service: Document) -> list[str]:
    """Return the problems that the webhook would report for a Knative Service."""
    return [*_metadata(service), *_revision(service["spec"]["template"]["spec"])]


def _metadata(service: Document) -> Iterator[str]:
    metadata, template = service["metadata"], service["spec"]["template"].get("metadata", {})
    if not _NAME.fullmatch(metadata["name"]) or len(metadata["name"]) > 63:
        yield "its name is not a DNS label"
    if any(name.startswith(_SCALING) for name in metadata.get("annotations", {})):
        yield "autoscaling annotations belong in the template"
    if template.get("name"):
        yield "a revision with a name cannot be changed"
    scaling = template.get("annotations", {})
    least, most = int(scaling.get(_MIN, "0")), int(scaling.get(_MAX, "0"))
    if least < 0 or most < 0 or 0 < most < least:
        yield f"min-scale {least} and max-scale {most} contradict each other"


def _revision(spec: Document) -> Iterator[str]:
    yield from _unknown(spec, _REVISION, "spec.template.spec")
    timeout = spec.get("timeoutSeconds", _FIRST_BYTE)
    if not 0 < timeout <= _LONGEST:
        yield f"timeoutSeconds {timeout} is more than {_LONGEST}"
    first = spec.get("responseStartTimeoutSeconds", min(_FIRST_BYTE, timeout))
    if first != timeout:
        yield f"responseStartTimeoutSeconds {first} differs from timeoutSeconds {timeout}"
    if not 0 <= spec.get("containerConcurrency", 0) <= _MOST_CONCURRENT:
        yield "containerConcurrency is out of bounds"
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false"
    if len(spec["containers"]) != 1:
        yield "more than one container"
    volumes = spec.get("volumes", [])
    mounted = {mount["name"] for one in spec["containers"] for mount in one.get("volumeMounts", [])}
    for volume in volumes:
        yield from _unknown(volume, _VOLUMES, f"volume {volume['name']}")
        if volume["name"] not in mounted:
            yield f"volume {volume['name']} is not mounted"
    for container in spec["containers"]:
        yield from _container(container, {volume["name"] for volume in volumes})


def _container(container: Document, volumes: set[str]) -> Iterator[str]:
    yield from _unknown(container, _CONTAINER, "container")
    yield from _ports(container.get("ports", []))
    yield from _variables(container.get("env", []))
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes or mount["mountPath"].rstrip("/") in _RESERVED_PATHS:
            yield f"invalid mount {mount['mountPath']}"
    context = container.get("securityContext", {})
    yield from _unknown(context, _CONTEXT, "securityContext")
    yield from (
        f"warning: securityContext.{one} is not set" for one in _WARNED if one not in context
    )
    if not context.get("capabilities", {}).get("drop"):
        yield "warning: securityContext.capabilities.drop is not set"
    for name in ("livenessProbe", "startupProbe"):
        yield from _kept_port(container.get(name, {}), name)
    probe = container.get("readinessProbe", {})
    if not probe.get("periodSeconds") and {"failureThreshold", "timeoutSeconds"} & set(probe):
        yield "readinessProbe: no threshold or timeout without periodSeconds"


def _ports(ports: list[Document]) -> Iterator[str]:
    if len(ports) != 1:
        yield f"{len(ports)} ports instead of one"
    for port in ports:
        if port.get("name", "") not in {"", "h2c", "http1"}:
            yield f"invalid port name {port['name']}"
        if port["containerPort"] in _RESERVED_PORTS:
            yield f"port {port['containerPort']} is reserved by Knative"


def _variables(variables: list[Document]) -> Iterator[str]:
    for variable in variables:
        if variable["name"] in _RESERVED_VARIABLES:
            yield f"variable {variable['name']} is reserved by Knative"
        yield from _unknown(
            variable.get("valueFrom", {}), {"secretKeyRef", "configMapKeyRef"}, "valueFrom"
        )


def _kept_port(probe: Document, name: str) -> Iterator[str]:
    """Yield probe fields that Knative overrides: it moves these probes to the serving port."""
    for kind in ("httpGet", "tcpSocket"):
        if probe.get(kind, {}).get("port", 0) != 0:
            yield f"{name} has a port, which Knative ignores"
        if name == "livenessProbe" and kind == "httpGet" and kind in probe:
            yield f"{name} over HTTP would call the function itself"


def _unknown(piece: Document, known: frozenset[str] | set[str], where: str) -> Iterator[str]:
    for name in sorted(set(piece) - known):
        yield f"{where} must not set {name}"
