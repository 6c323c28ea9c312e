"""The files in `knative/` and `keda/` as typed objects, with the fields that one machine supports.

Fields for a cluster only (images, other probes, security contexts) are ignored; the API server
validates them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec


class Part(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Part of a manifest; unknown fields are ignored."""


class Metadata(Part, frozen=True):
    """The name, labels and annotations of an object."""

    name: str
    namespace: str = "default"
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}


class KeyReference(Part, frozen=True):
    """One key of a Secret or ConfigMap."""

    name: str
    key: str
    optional: bool = False


class ValueSource(Part, frozen=True):
    """The source of a variable's value."""

    secret_key_ref: KeyReference | None = None
    config_map_key_ref: KeyReference | None = None


class Variable(Part, frozen=True):
    """One environment variable."""

    name: str
    value: str = ""
    value_from: ValueSource | None = None


class ObjectName(Part, frozen=True):
    """A reference by name alone."""

    name: str


class WholeObject(Part, frozen=True):
    """A ConfigMap or Secret by name; an optional one may be missing."""

    name: str
    optional: bool = False


class VariablesSource(Part, frozen=True):
    """A whole ConfigMap or Secret as a source of variables."""

    config_map_ref: WholeObject | None = None
    secret_ref: WholeObject | None = None


class HttpGet(Part, frozen=True):
    """An HTTP probe."""

    path: str = "/"


class Probe(Part, frozen=True):
    """A readiness probe; without `http_get` it opens a connection."""

    http_get: HttpGet | None = None


class Container(Part, frozen=True):
    """A command, its environment and its readiness probe."""

    readiness_probe: Probe = Probe()
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    env_from: list[VariablesSource] = []


class PodSpec(Part, frozen=True):
    """The containers of a pod; only the first is run."""

    containers: Annotated[list[Container], msgspec.Meta(min_length=1)]
    termination_grace_period_seconds: float = 30.0
    timeout_seconds: float = 300.0


class TemplateMetadata(Part, frozen=True):
    """Labels that Services select pods by, and annotations with Knative's scaling bounds."""

    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}


class PodTemplate(Part, frozen=True):
    """A pod's template."""

    spec: PodSpec
    metadata: TemplateMetadata = TemplateMetadata()


class KnativeServiceSpec(Part, frozen=True):
    """The one revision template of a Knative Service."""

    template: PodTemplate


class DeploymentSpec(Part, frozen=True):
    """A Deployment; `replicas` is absent where a ScaledObject owns the count."""

    template: PodTemplate
    replicas: int | None = None


class CoreServiceSpec(Part, frozen=True):
    """The pod labels that a Service selects."""

    selector: dict[str, str] = {}


class Reference(Part, frozen=True):
    """A reference to an object that accepts events."""

    kind: str
    name: str
    api_version: str = "v1"


class Destination(Part, frozen=True):
    """The destination of events: an object, or an address."""

    ref: Reference | None = None
    uri: str | None = None


class Delivery(Part, frozen=True):
    """Retries, timeout and dead letter sink; durations are ISO 8601, such as `PT0.5S`."""

    retry: int = 0
    backoff_policy: str = "exponential"
    backoff_delay: str = "PT0.2S"
    timeout: str = "PT30S"
    dead_letter_sink: Destination | None = None


class TriggerFilter(Part, frozen=True):
    """Attributes that an event must match exactly."""

    attributes: dict[str, str] = {}


class TriggerSpec(Part, frozen=True):
    """A filter, and the subscriber of the events that match."""

    broker: str
    subscriber: Destination
    filter: TriggerFilter = TriggerFilter()
    delivery: Delivery = Delivery()


class PingSourceSpec(Part, frozen=True):
    """An event sent on a cron schedule of five fields, or six with seconds first."""

    sink: Destination
    schedule: str = "* * * * *"
    timezone: str = "UTC"
    content_type: str = ""
    data: str = ""


class PathMatch(Part, frozen=True):
    """`Exact`, or `PathPrefix` by whole segments."""

    value: str = "/"
    type: str = "PathPrefix"


class RouteMatch(Part, frozen=True):
    """A path and an optional method."""

    path: PathMatch = PathMatch()
    method: str | None = None


class UrlRewrite(Part, frozen=True):
    """The host that replaces a request's own."""

    hostname: str | None = None


class RouteFilter(Part, frozen=True):
    """A change to requests before they are forwarded."""

    url_rewrite: UrlRewrite | None = None


class RouteRule(Part, frozen=True):
    """Requests that match any of `matches` go to the first backend."""

    matches: list[RouteMatch] = msgspec.field(default_factory=lambda: [RouteMatch()])
    filters: list[RouteFilter] = []
    backend_refs: list[ObjectName] = []

    @property
    def service(self) -> str | None:
        """The name of the Service that answers.

        Knative's gateway routes by host, such as `upload.lowtide.svc.cluster.local`; without a
        rewrite it is the first backend.
        """
        for rule_filter in self.filters:
            if rule_filter.url_rewrite is not None and rule_filter.url_rewrite.hostname is not None:
                return rule_filter.url_rewrite.hostname.partition(".")[0]
        return self.backend_refs[0].name if self.backend_refs else None


class RouteSpec(Part, frozen=True):
    """The rules of an HTTPRoute."""

    rules: list[RouteRule]


class ScalingPolicy(Part, frozen=True):
    """At most `value` pods or percent within `period_seconds`."""

    type: str
    value: int
    period_seconds: int


class ScalingRules(Part, frozen=True):
    """The HPA's limits on scaling in one direction; None means the HPA's default."""

    stabilization_window_seconds: int | None = None
    select_policy: str = "Max"
    policies: list[ScalingPolicy] | None = None
    tolerance: str | float | None = None


class Behavior(Part, frozen=True):
    """The HPA's behaviour in both directions."""

    scale_up: ScalingRules = ScalingRules()
    scale_down: ScalingRules = ScalingRules()


class HpaConfig(Part, frozen=True):
    """The HPA configuration that KEDA passes on."""

    behavior: Behavior = Behavior()


class Advanced(Part, frozen=True):
    """The wrapper of the HPA's configuration."""

    horizontal_pod_autoscaler_config: HpaConfig = HpaConfig()


class ScaleTrigger(Part, frozen=True):
    """One scaler; KEDA requires strings as its metadata."""

    type: str
    metadata: dict[str, str]
    authentication_ref: ObjectName | None = None


class Fallback(Part, frozen=True):
    """The count after the scaler failed more than `failure_threshold` times in a row."""

    failure_threshold: int
    replicas: int
    behavior: str = "static"


class ScaledObjectSpec(Part, frozen=True):
    """A ScaledObject, with KEDA's defaults; times in seconds."""

    scale_target_ref: ObjectName
    triggers: list[ScaleTrigger]
    polling_interval: float = 30.0
    cooldown_period: float = 300.0
    min_replica_count: int = 0
    max_replica_count: int = 100
    fallback: Fallback | None = None
    advanced: Advanced = Advanced()


class SecretParameter(Part, frozen=True):
    """A scaler parameter from a Secret."""

    parameter: str
    name: str
    key: str


class AuthenticationSpec(Part, frozen=True):
    """A TriggerAuthentication's parameters."""

    secret_target_ref: list[SecretParameter] = []


class KnativeService(Part, frozen=True):
    """`serving.knative.dev/v1` Service."""

    metadata: Metadata
    spec: KnativeServiceSpec


class CoreService(Part, frozen=True):
    """`v1` Service."""

    metadata: Metadata
    spec: CoreServiceSpec


class Deployment(Part, frozen=True):
    """`apps/v1` Deployment."""

    metadata: Metadata
    spec: DeploymentSpec


class ConfigMap(Part, frozen=True):
    """`v1` ConfigMap."""

    metadata: Metadata
    data: dict[str, str] = {}


class Trigger(Part, frozen=True):
    """`eventing.knative.dev/v1` Trigger."""

    metadata: Metadata
    spec: TriggerSpec


class PingSource(Part, frozen=True):
    """`sources.knative.dev/v1` PingSource."""

    metadata: Metadata
    spec: PingSourceSpec


class HttpRoute(Part, frozen=True):
    """`gateway.networking.k8s.io/v1` HTTPRoute."""

    metadata: Metadata
    spec: RouteSpec


class ScaledObject(Part, frozen=True):
    """`keda.sh/v1alpha1` ScaledObject."""

    metadata: Metadata
    spec: ScaledObjectSpec


class TriggerAuthentication(Part, frozen=True):
    """`keda.sh/v1alpha1` TriggerAuthentication."""

    metadata: Metadata
    spec: AuthenticationSpec
