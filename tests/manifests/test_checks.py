"""Manifests pass every check that needs no cluster, and each check can fail."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.identity.parsing import parse
from lowtide.local.autoscaler import limited
from lowtide.local.options import BadManifest
from lowtide.local.rendering import documents as documents_of
from lowtide.local.rendering import render
from lowtide.settings import Settings
from manifests import bounds, check, kubectl, policies
from manifests.overlays import KUSTOMIZATIONS, OVERLAYS, ROOT, label, others, rendered
from manifests.pods import templates
from manifests.policies import Allowance, Finding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lowtide.local.rendering import Document

GPU = "knative/overlays/prod-gpu"
TLS = "knative/overlays/prod-tls"
DATABASE_CA = "/etc/lowtide-database"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_kustomization_passes_all_checks(kustomization: str) -> None:
    assert check.findings(rendered(kustomization)) == []


def test_unlisted_manifests_pass_all_checks() -> None:
    assert check.findings(others()) == []


def test_istio_component_replaces_kourier(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{ROOT}/knative/overlays/prod]\ncomponents: [{ROOT}/knative/components/istio]\n"
    )
    documents = [resource.document for resource in render(tmp_path)]
    assert check.findings(documents) == []
    (route,) = [one for one in documents if one["kind"] == "HTTPRoute"]
    backends = {rule["backendRefs"][0]["namespace"] for rule in route["spec"]["rules"]}
    assert backends == {"istio-system"}


def test_identity_component_gives_every_api_function_the_file(tmp_path: Path) -> None:
    component = ROOT / "knative/components/identity"
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{ROOT}/knative/overlays/prod]\ncomponents: [{component}]\n"
    )
    documents = [resource.document for resource in render(tmp_path)]
    assert check.findings(documents) == []
    mounted = {
        one["metadata"]["name"]
        for one in documents
        if one["kind"] in {"Service", "Deployment"}
        for volume in one["spec"].get("template", {}).get("spec", {}).get("volumes", [])
        if volume["name"] == "identity"
    }
    assert mounted == {"upload", "create-batch", "cancel-batch", "read", "portal"}
    (file,) = [one for one in documents if one["metadata"]["name"] == "lowtide-identity"]
    issuers = parse(file["data"]["identity.yaml"])
    assert issuers.portal is not None
    assert len(issuers.all) == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_database_ca_component_gives_every_user_of_the_database_the_file(
    overlay: str, tmp_path: Path
) -> None:
    component = "knative/components/database-ca"
    # kubectl takes no absolute paths.
    folders = [
        os.path.relpath(ROOT / one, tmp_path) for one in (f"knative/overlays/{overlay}", component)
    ]
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{folders[0]}]\ncomponents: [{folders[1]}]\n"
    )
    documents = [resource.document for resource in render(tmp_path)]
    assert check.findings(documents) == []
    if kubectl.available():
        assert kubectl.differences(str(tmp_path), documents) == []
    users, mounted = set(), set()
    for template in templates(documents):
        volumes = {one["name"]: one for one in template.spec.get("volumes", [])}
        for container in template.containers:
            name = label(template.owner), container["name"]
            if _connects(container):
                users.add(name)
            for mount in container.get("volumeMounts", []):
                source = volumes[mount["name"]].get("configMap", {})
                if source.get("name") == "lowtide-database-ca":
                    assert (mount["mountPath"], mount["readOnly"]) == (DATABASE_CA, True)
                    assert source["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
                    mounted.add(name)
    functions = ("upload", "create-batch", "cancel-batch", "read", "split", "finalize", "schedule")
    assert {(f"Service/{one}", "function") for one in functions} < users
    assert {"portal", "worker", "migrate"} < {container for _, container in users}
    assert mounted == users


def _connects(container: Document) -> bool:
    """Return True if a container has the URL of a database role."""
    references = [one.get("valueFrom", {}).get("secretKeyRef", {}) for one in container["env"]]
    return any(
        one.get("name") == "lowtide-database" and one["key"].endswith("-url") for one in references
    )


def test_everything_but_the_redirect_is_behind_https() -> None:
    documents = rendered(TLS)
    (gateway,) = [one for one in documents if one["kind"] == "Gateway"]
    listeners = {one["name"]: one for one in gateway["spec"]["listeners"]}
    encrypted = {name for name, one in listeners.items() if one["protocol"] == "HTTPS"}
    sections = {
        one["metadata"]["name"]: one["spec"]["parentRefs"][0]["sectionName"]
        for one in documents
        if one["kind"] == "HTTPRoute"
    }
    assert sections == {"redirect": "http", "lowtide": "api", "portal": "portal"}
    assert encrypted == {"api", "portal"} == set(listeners) - {"http"}
    (redirect,) = [one for one in documents if label(one) == "HTTPRoute/redirect"]
    assert all("backendRefs" not in rule for rule in redirect["spec"]["rules"])
    # cert-manager skips a listener without a hostname, and needs its annotation.
    names = {listeners[one]["tls"]["certificateRefs"][0]["name"] for one in encrypted}
    assert len(names) == len({listeners[one]["hostname"] for one in encrypted}) == len(encrypted)
    (issuer,) = [one for one in documents if one["kind"] == "Issuer"]
    annotations = gateway["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/issuer": issuer["metadata"]["name"]}
    (config,) = [one for one in documents if label(one) == "ConfigMap/lowtide-config"]
    assert config["data"]["LOWTIDE_API_URL"] == f"https://{listeners['api']['hostname']}"
    assert config["data"]["LOWTIDE_PORTAL_HTTPS_ONLY"] == "true"


def test_every_route_to_a_backend_has_a_timeout_of_its_own() -> None:
    """Without one, Envoy Gateway cuts a download after 15 s."""
    rules = [
        (label(one), rule)
        for one in rendered(TLS)
        if one["kind"] == "HTTPRoute"
        for rule in one["spec"]["rules"]
        if "backendRefs" in rule
    ]
    assert {name for name, _ in rules} == {"HTTPRoute/lowtide", "HTTPRoute/portal"}
    assert [name for name, rule in rules if "request" not in rule.get("timeouts", {})] == []


def test_broker_answers_for_the_siem_before_the_scheduler_gives_up() -> None:
    (trigger,) = documents_of(ROOT / "knative/examples/audit-events.yaml")
    delivery = trigger["spec"]["delivery"]
    delay, attempt = (
        float(delivery[name].removeprefix("PT").removesuffix("S"))
        for name in ("backoffDelay", "timeout")
    )
    retries = range(1, delivery["retry"] + 1)
    longest = attempt + sum(delay * 2**number + attempt for number in retries)
    assert longest < Settings.model_fields["event_sink_timeout"].default


@pytest.mark.parametrize(
    ("which", "break_it", "message"),
    [
        (
            "HTTPRoute/portal",
            lambda d: d["spec"]["parentRefs"][0].update(sectionName="https"),
            "Gateway lowtide has no listener https",
        ),
        (
            "Issuer/lowtide",
            lambda d: d["spec"]["acme"]["solvers"][0]["http01"].update(gatewayHttpRoute={}),
            "gatewayHttpRoute",
        ),
    ],
    ids=["a route without a listener", "a field that cert-manager does not have"],
)
def test_mistake_around_the_gateway_is_reported(
    which: str, break_it: Callable[[Document], Any], message: str
) -> None:
    documents = copy.deepcopy(rendered(TLS))
    break_it(next(one for one in documents if label(one) == which))
    findings = check.findings(documents)
    assert any(message in one for one in findings), findings


def test_every_overlay_is_checked() -> None:
    assert {path.name for path in (ROOT / "knative/overlays").iterdir()} == set(OVERLAYS)


@pytest.mark.skipif(not kubectl.available(), reason="kubectl is not installed")
@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_kubectl_renders_the_same(kustomization: str) -> None:
    assert kubectl.differences(kustomization, rendered(kustomization)) == []


@pytest.mark.skipif(not kubectl.available(), reason="kubectl is not installed")
def test_difference_to_kubectl_is_reported() -> None:
    documents = rendered("keda")
    documents[0]["metadata"]["name"] = "other"
    assert len(kubectl.differences("keda", documents)) == 2


def test_overlay_queries_differ_from_base_in_limits_only() -> None:
    assert bounds.stale() == []
    (base,) = (one for one in rendered("keda") if label(one) == "ScaledObject/infer-spot")
    query = base["spec"]["triggers"][0]["metadata"]["query"]
    (prod,) = (
        one for one in rendered("knative/overlays/prod") if label(one) == "ScaledObject/infer-spot"
    )
    overlay_query = prod["spec"]["triggers"][0]["metadata"]["query"]
    assert overlay_query != query
    assert limited(overlay_query, 20) == query


def test_stale_bound_is_reported_and_rewritten(tmp_path: Path) -> None:
    for name in ("keda", "knative/base", *(f"knative/overlays/{one}" for one in bounds.SCALED)):
        (tmp_path / name).mkdir(parents=True)
        for path in (ROOT / name).glob("*.*"):
            (tmp_path / name / path.name).write_text(path.read_text())
    config = tmp_path / "knative/overlays/prod/config.yaml"
    config.write_text(config.read_text().replace('"50"', '"60"'))
    assert bounds.stale(tmp_path) == ["knative/overlays/prod/scale-spot.yaml"]
    bounds.write(tmp_path)
    assert bounds.stale(tmp_path) == []
    patch = (tmp_path / "knative/overlays/prod/scale-spot.yaml").read_text()
    assert "most => 300)" in patch
    assert "LIMIT 300)" in patch
    template = tmp_path / "keda/scaled-object.tmpl"
    template.write_text(template.read_text().replace("least(count(*), 1)", "least(count(*), 2)"))
    assert bounds.stale(tmp_path)[:2] == ["keda/infer-spot.yaml", "keda/infer-dedicated.yaml"]
    bounds.write(tmp_path)
    assert bounds.stale(tmp_path) == []


def _at(document: Document, *path: str | int) -> Any:
    place: Any = document
    for step in path:
        place = place[step]
    return place


def _pod(document: Document) -> Any:
    return document["spec"]["template"]["spec"]


def _worker(document: Document) -> Any:
    return _pod(document)["containers"][0]


BROKEN: dict[str, tuple[str, Callable[[Document], Any], str]] = {
    "core: a field that does not exist": (
        "Deployment/portal", lambda d: d["spec"].update(replica=2), "replica"
    ),
    "custom: a field that does not exist": (
        "ScaledObject/infer-spot", lambda d: d["spec"].update(coolDown=3), "coolDown"
    ),
    "custom: a wrong type": (
        "Trigger/split", lambda d: d["spec"]["delivery"].update(retry="8"), "not of type 'integer'"
    ),
    "core: a kind that does not exist": (
        "ServiceAccount/lowtide-api", lambda d: d.update(kind="Account"), "has no Account"
    ),
    "a kind without a schema": (
        "Broker/default", lambda d: d.update(apiVersion="eventing.knative.dev/v2"), "no schema"
    ),
    "knative: a field behind a flag": (
        "Service/upload", lambda d: _pod(d).update(nodeSelector={"a": "b"}), "must not set nodeSelector"
    ),
    "knative: two ports": (
        "Service/upload", lambda d: _worker(d)["ports"].append({"containerPort": 8081}), "2 ports"
    ),
    "knative: a reserved port": (
        "Service/upload", lambda d: _worker(d)["ports"][0].update(containerPort=8012), "8012"
    ),
    "knative: a reserved variable": (
        "Service/upload", lambda d: _worker(d)["env"].append({"name": "PORT", "value": "1"}), "PORT"
    ),
    "knative: a timeout that is too long": (
        "Service/split", lambda d: _pod(d).update(timeoutSeconds=601), "more than 600"
    ),
    "knative: a shorter timeout to the first byte": (
        "Service/split", lambda d: _pod(d).pop("responseStartTimeoutSeconds"), "responseStartTimeoutSeconds 300"
    ),
    "knative: an insecure default": (
        "Service/read", lambda d: _worker(d)["securityContext"].pop("seccompProfile"), "warning"
    ),
    "knative: a liveness port": (
        "Service/read",
        lambda d: _worker(d)["livenessProbe"]["tcpSocket"].update(port=8081),
        "has a port, which Knative ignores",
    ),
    "knative: scaling in the wrong place": (
        "Service/read",
        lambda d: d["metadata"].update(annotations={"autoscaling.knative.dev/min-scale": "1"}),
        "belong in the template",
    ),
    "knative: bounds that cross": (
        "Service/read",
        lambda d: d["spec"]["template"]["metadata"]["annotations"].update(
            {"autoscaling.knative.dev/min-scale": "99"}
        ),
        "contradict each other",
    ),
    "restricted: privileged": (
        "Deployment/portal", lambda d: _worker(d)["securityContext"].update(privileged=True), "privileged"
    ),
    "restricted: escalation": (
        "Deployment/portal",
        lambda d: _worker(d)["securityContext"].pop("allowPrivilegeEscalation"),
        "allowPrivilegeEscalation",
    ),
    "restricted: root": (
        "Deployment/portal", lambda d: _worker(d)["securityContext"].update(runAsUser=0), "runAsUser is 0"
    ),
    "restricted: capabilities": (
        "Deployment/portal",
        lambda d: _worker(d)["securityContext"].update(capabilities={"drop": ["NET_RAW"]}),
        "does not contain ALL",
    ),
    "restricted: the host's network": (
        "Deployment/portal", lambda d: _pod(d).update(hostNetwork=True), "hostNetwork"
    ),
    "restricted: the host's files": (
        "Deployment/portal",
        lambda d: _pod(d)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
        "hostPath",
    ),
    "restricted: a sidecar's seccomp": (
        "Deployment/infer-spot",
        lambda d: _pod(d)["initContainers"][0]["securityContext"].update(
            seccompProfile={"type": "Unconfined"}
        ),
        "container engine: seccompProfile",
    ),
    "eventing: a zero delivery timeout": (
        "Trigger/split", lambda d: d["spec"]["delivery"].update(timeout="PT0S"), "timeout"
    ),
    "eventing: a malformed filter attribute": (
        "Trigger/split", lambda d: d["spec"]["filter"]["attributes"].update({"a-b": "c"}), "a-b"
    ),
    "eventing: a malformed schedule": (
        "PingSource/schedule", lambda d: d["spec"].update(schedule="every second"), "not a cron expression"
    ),
    "eventing: no broker class": (
        "Broker/default", lambda d: d["metadata"].pop("annotations"), "broker.class"
    ),
    "eventing: a sink of an unknown broker": (
        "ConfigMap/lowtide-config",
        lambda d: d["data"].update(K_SINK="http://broker-ingress.knative-eventing/other/default"),
        "is not an existing Broker",
    ),
    "keda: the default tolerance": (
        "ScaledObject/infer-spot",
        lambda d: _at(
            d, "spec", "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaleUp"
        ).pop("tolerance"),
        "not exact",
    ),
    "keda: a query without bounds": (
        "ScaledObject/infer-spot",
        lambda d: d["spec"]["triggers"][0]["metadata"].update(query="SELECT count(*) FROM queue"),
        "must be limited to 50 x 5",
    ),
    "keda: a fallback to zero": (
        "ScaledObject/infer-spot", lambda d: d["spec"]["fallback"].update(replicas=0), "fallback"
    ),
    "keda: a maximum above the scheduler's": (
        "ScaledObject/infer-spot", lambda d: d["spec"].update(maxReplicaCount=51), "but 51 in ScaledObject infer-spot"
    ),
    "keda: fixed replicas": (
        "Deployment/infer-spot", lambda d: d["spec"].update(replicas=3), "override KEDA"
    ),
    "a name with dots": (
        "Job/migrate-prod", lambda d: d["metadata"].update(name="migrate-0.1"), "not a DNS label"
    ),
    "a missing account": (
        "Deployment/portal", lambda d: _pod(d).update(serviceAccountName="x"), "no ServiceAccount x"
    ),
    "a missing key": (
        "Deployment/portal",
        lambda d: next(one for one in _worker(d)["env"] if "valueFrom" in one)["valueFrom"][
            "secretKeyRef"
        ].update(key="gone"),
        "no key gone",
    ),
    "a mount inside a read-only one": (
        "Deployment/portal",
        lambda d: _worker(d)["volumeMounts"].extend(
            {"name": "tmp", "mountPath": path, "readOnly": path == "/etc/a"}
            for path in ("/etc/a", "/etc/a/b")
        ),
        "mount /etc/a/b is inside /etc/a",
    ),
    "an unknown setting": (
        "Deployment/portal",
        lambda d: _worker(d)["env"].append({"name": "LOWTIDE_TYPO", "value": ""}),
        "LOWTIDE_TYPO",
    ),
    "an unknown setting in the ConfigMap": (
        "ConfigMap/lowtide-config", lambda d: d["data"].update(LOWTIDE_TYPO=""), "LOWTIDE_TYPO"
    ),
    "a Service's selector": (
        "Service/portal", lambda d: d["spec"].update(selector={"a": "b"}), "of 0 workloads"
    ),
    "a Service's port": (
        "Service/portal", lambda d: d["spec"]["ports"][0].update(targetPort="x"), "does not exist in its pods"
    ),
    "a probe's port": (
        "Deployment/portal",
        lambda d: _worker(d)["readinessProbe"]["tcpSocket"].update(port="x"),
        "uses port x",
    ),
    "a policy that selects no pod": (
        "NetworkPolicy/portal",
        lambda d: d["spec"].update(podSelector={"matchLabels": {"a": "b"}}),
        "selects no pod",
    ),
    "a budget that selects no pod": (
        "PodDisruptionBudget/read",
        lambda d: d["spec"]["selector"].update(matchLabels={"a": "b"}),
        "selects no pod",
    ),
    "a route to an unknown function": (
        "HTTPRoute/lowtide",
        lambda d: d["spec"]["rules"][0]["filters"][0]["urlRewrite"].update(hostname="x.y"),
        "no Knative Service has the host x.y",
    ),
    "a route to an ExternalName Service": (
        "HTTPRoute/lowtide",
        lambda d: d["spec"]["rules"][0].update(backendRefs=[{"name": "upload", "port": 80}]),
        "is not a known Service",
    ),
    "a route without a grant": (
        "HTTPRoute/lowtide",
        lambda d: d["spec"]["rules"][0]["backendRefs"][0].update(name="other"),
        "no ReferenceGrant",
    ),
    "a grace period that is too short": (
        "Deployment/infer-spot",
        lambda d: _pod(d).update(terminationGracePeriodSeconds=640),
        "leaves less than 15 s",
    ),
    "more GPUs than the workers use": (
        "ResourceQuota/gpus", lambda d: d["spec"]["hard"].update({"requests.nvidia.com/gpu": "9"}), "9 GPUs"
    ),
    "a tick that differs": (
        "PingSource/schedule", lambda d: d["spec"].update(schedule="*/20 * * * * *"), "LOWTIDE_TICK"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def gpu_documents() -> list[Document]:
    return rendered(GPU)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_manifest_is_reported(gpu_documents: list[Document], name: str) -> None:
    which, break_it, message = BROKEN[name]
    documents = copy.deepcopy(gpu_documents)
    for one in documents:
        # Core and Knative Services have the same kind.
        if label(one) == which and not (which == "Service/portal" and one["apiVersion"] != "v1"):
            break_it(one)
    findings = check.findings(documents)
    assert any(message in one for one in findings), findings


def test_finding_needs_allowance_of_same_overlay() -> None:
    findings = [Finding("prod", "Deployment/a", "CKV_1", "text")]
    reason = Allowance("CKV_1", ("Deployment/*",), ("prod",), "because")
    assert policies.unexplained(findings, [reason]) == []
    assert policies.unexplained(findings, []) == ["prod Deployment/a: CKV_1: text"]
    other = Allowance("CKV_1", ("Deployment/*",), ("dev",), "because")
    assert len(policies.unexplained(findings, [other])) == 2
    assert all(one.reason for one in policies.allowances())


def test_function_is_wrapped_in_deployment_for_checkov() -> None:
    (upload,) = (
        one
        for one in rendered("knative")
        if one["metadata"]["name"] == "upload" and "template" in one["spec"]
    )
    wrapped = policies.wrapped(upload)
    assert wrapped["kind"] == "Deployment"
    assert wrapped["spec"]["template"]["spec"]["containers"] == _pod(upload)["containers"]
    assert "containerConcurrency" not in wrapped["spec"]["template"]["spec"]


@pytest.mark.skipif(not policies.CHECKOV.exists(), reason="`make manifests` installs checkov")
@pytest.mark.slow
def test_checkov_reports_finding_without_allowance(gpu_documents: list[Document]) -> None:
    documents = copy.deepcopy(gpu_documents)
    (portal,) = (one for one in documents if label(one) == "Deployment/portal")
    del _worker(portal)["readinessProbe"]
    findings = policies.scan({GPU: documents})
    unexplained = policies.unexplained(findings, policies.allowances())
    assert any("Deployment/portal: CKV_K8S_9" in one for one in unexplained), os.linesep.join(
        unexplained
    )


def test_missing_folder_is_reported() -> None:
    with pytest.raises(BadManifest, match="is missing"):
        rendered("knative/overlays/none")


# Fleets of knative/fleets/fleets.yaml with a GPU.
GPU_FLEETS = ("-llama-70b", "-qwen-8b")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_roll_one_replica_at_a_time(overlay: str) -> None:
    strategies = {
        label(document): document["spec"]["strategy"]["rollingUpdate"]
        for document in rendered(f"knative/overlays/{overlay}")
        if label(document).startswith("Deployment/infer-")
    }
    assert strategies
    for name, strategy in strategies.items():
        # With a GPU for each replica, a surge one would find none.
        has_gpu = overlay == "prod-gpu" or name.endswith(GPU_FLEETS)
        surge = int(not has_gpu)
        assert strategy == {"maxSurge": surge, "maxUnavailable": 1 - surge}, name
