"""The Pod Security Standard "restricted", rule by rule, as Kubernetes publishes it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.local.rendering import Document
    from manifests.pods import Template

_VOLUMES = frozenset(
    [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ]
)
_SECCOMP = ("RuntimeDefault", "Localhost")
_SAFE_SYSCTLS = frozenset(
    [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    ]
)
_SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")


def findings(template: Template) -> list[str]:
    """Return the violations that bar a pod from a namespace that enforces `restricted`."""
    found = list(_pod(template.spec))
    for container in template.containers:
        name = container["name"]
        found += [f"container {name}: {one}" for one in _container(container, template.spec)]
    return found


def _pod(spec: Document) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"{name} is set"
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= _VOLUMES:
            yield f"volume {volume['name']} has the forbidden type {', '.join(sorted(kinds - _VOLUMES))}"
    context = spec.get("securityContext", {})
    for one in context.get("sysctls", []):
        if one["name"] not in _SAFE_SYSCTLS:
            yield f"sysctl {one['name']} is not safe"
    yield from _shared(context)


def _container(container: Document, spec: Document) -> Iterator[str]:
    context = container.get("securityContext", {})
    pod = spec.get("securityContext", {})
    yield from _shared(context)
    if context.get("privileged"):
        yield "is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    seccomp = context.get("seccompProfile", pod.get("seccompProfile", {}))
    if seccomp.get("type") not in _SECCOMP:
        yield "seccompProfile is neither RuntimeDefault nor Localhost"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities.drop does not contain ALL"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities.add has more than NET_BIND_SERVICE"
    if context.get("procMount", "Default") != "Default":
        yield "procMount is not the default"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "has a hostPort"
    yield from _hosts(container)


def _shared(context: Document) -> Iterator[str]:
    """Yield violations in the fields that pod and container contexts share."""
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot is false"
    if context.get("seccompProfile", {}).get("type", "RuntimeDefault") not in _SECCOMP:
        yield "seccompProfile is Unconfined"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "is a host process"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in _SECCOMP:
        yield "appArmorProfile is Unconfined"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions are not allowed"


def _hosts(container: Document) -> Iterator[str]:
    """Yield probes and hooks that name another host."""
    hooks: list[Any] = [container.get(f"{name}Probe") for name in ("liveness", "readiness")]
    hooks += [container.get("startupProbe"), *container.get("lifecycle", {}).values()]
    for hook in hooks:
        for kind in ("httpGet", "tcpSocket"):
            if hook and hook.get(kind, {}).get("host"):
                yield "a probe or hook has a host"
