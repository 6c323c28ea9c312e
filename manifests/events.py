"""Rules of Knative Eventing, KEDA and the Gateway API beyond their schemas.

Sources: `pkg/apis` of knative/eventing, `apis/keda/v1alpha1` and `pkg/scalers/postgresql_scaler.go`
of kedacore/keda 2.18, and the specification of the Gateway API.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from croniter import croniter

from lowtide.local.autoscaler import limits_of
from lowtide.local.dispatcher import parse
from lowtide.local.options import BadManifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowtide.local.rendering import Document

_ATTRIBUTE = re.compile(r"[a-z][a-z0-9]*")
_BROKER_CLASS = "eventing.knative.dev/broker.class"


def findings(document: Document) -> list[str]:
    """Return the problems that a webhook or a controller would report."""
    check = _CHECKS.get((document["apiVersion"].partition("/")[0], document["kind"]))
    return list(check(document)) if check else []


def _broker(document: Document) -> Iterator[str]:
    if not document["metadata"].get("annotations", {}).get(_BROKER_CLASS):
        yield f"no annotation {_BROKER_CLASS}"
    yield from _delivery(document["spec"].get("delivery", {}))


def _trigger(document: Document) -> Iterator[str]:
    spec = document["spec"]
    for name in spec.get("filter", {}).get("attributes", {}):
        if not _ATTRIBUTE.fullmatch(name):
            yield f"filter attribute {name}: only lowercase letters and digits are allowed"
    yield from _delivery(spec.get("delivery", {}))


def _delivery(delivery: Document) -> Iterator[str]:
    if delivery.get("retry", 0) < 0:
        yield "delivery.retry is negative"
    for name in ("timeout", "backoffDelay"):
        if name in delivery:
            try:
                if parse(delivery[name]) <= 0:
                    yield f"delivery.{name} is not positive"
            except BadManifest as error:
                yield f"delivery.{name}: {error}"
    if "retryAfterMax" in delivery:
        yield "delivery.retryAfterMax needs a feature flag"


def _ping(document: Document) -> Iterator[str]:
    spec = document["spec"]
    fields = len(spec["schedule"].split())
    if fields not in {5, 6} or not croniter.is_valid(spec["schedule"], second_at_beginning=True):
        yield f"schedule {spec['schedule']} is not a cron expression of five fields, or six with seconds"
    if spec.get("contentType") == "application/json" and not isinstance(
        json.loads(spec.get("data", "null")), dict
    ):
        yield "data is not a JSON object"


def _scaled(document: Document) -> Iterator[str]:
    spec = document["spec"]
    least, most = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    if not 0 <= least <= most:
        yield f"minReplicaCount {least} is more than maxReplicaCount {most}"
    fallback = spec.get("fallback", {})
    if fallback and not (fallback["failureThreshold"] > 0 and fallback["replicas"] > 0):
        yield "fallback.replicas of 0 would scale to zero while the database is unavailable"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    if any(behavior[way].get("tolerance") != "0" for way in ("scaleUp", "scaleDown")):
        yield "without a tolerance of 0 the count is not exact"
    for trigger in spec["triggers"]:
        metadata: Any = trigger["metadata"]
        if not all(isinstance(value, str) for value in metadata.values()):
            yield "trigger metadata must be strings"
        if trigger.get("metricType", "AverageValue") != "AverageValue":
            yield "fallback requires AverageValue"
        target = float(metadata["targetQueryValue"])
        limit = int(most * target)
        if limits_of(metadata["query"]) != [limit, limit]:
            yield f"each part of the query must be limited to {most} x {target:g}: {limit}"


def _route(document: Document) -> Iterator[str]:
    spec = document["spec"]
    rules = spec["rules"]
    if len(rules) > 16:
        yield "more than 16 rules"
    for number, rule in enumerate(rules):
        matches = rule.get("matches", [])
        if len(matches) > 64:
            yield f"rule {number}: more than 64 matches"
        for match in matches:
            if not match.get("path", {}).get("value", "/").startswith("/"):
                yield f"rule {number}: a path must start with /"
        kinds = [one["type"] for one in rule.get("filters", [])]
        if len(kinds) != len(set(kinds)):
            yield f"rule {number}: duplicate filter"


_CHECKS: dict[tuple[str, str], Callable[[Document], Iterator[str]]] = {
    ("eventing.knative.dev", "Broker"): _broker,
    ("eventing.knative.dev", "Trigger"): _trigger,
    ("sources.knative.dev", "PingSource"): _ping,
    ("keda.sh", "ScaledObject"): _scaled,
    ("gateway.networking.k8s.io", "HTTPRoute"): _route,
}
