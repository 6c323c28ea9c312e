"""The settings of all processes, read once from `LOWTIDE_*` environment variables."""

from __future__ import annotations

import ipaddress
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lowtide.core.fault_plans import parse_faults
from lowtide.core.redaction import masked
from lowtide.files.lines import ENDPOINTS
from lowtide.telemetry.logs import LogFormat, LogLevel
from lowtide.tenants.sign_in import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


PREFIX = "LOWTIDE_"
_AWS_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST_SECRET = 6  # a shorter value, such as `test`, also occurs in ordinary log text


def _web_address(value: str) -> str:
    """Validate an address to be shown as a link; raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must start with http:// or https:// and name a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must have no user, no ? and no #: visitors see it, paths are added to it")
    return value


WebAddress = Annotated[str, AfterValidator(_web_address)]


def _trace_address(value: str) -> str:
    """Validate the address of a trace's page, with a placeholder for the id; raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError("must start with http:// or https:// and name a host, and no user")
    if "{trace_id}" not in value:
        raise ValueError("must have {trace_id} where the id of the trace goes")
    return value


def _fault_plan(value: str) -> str:
    """Validate a fault plan; raises ValueError."""
    parse_faults(value)
    return value


FaultPlan = Annotated[str, AfterValidator(_fault_plan)]
TraceAddress = Annotated[str, AfterValidator(_trace_address)]


def _network(value: str) -> str:
    """Validate an address or a network; raises ValueError."""
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"must be addresses or networks such as 10.0.0.0/8: {error}") from error
    return value


Network = Annotated[str, AfterValidator(_network)]


class EngineKind(StrEnum):
    """The engine that runs requests."""

    SIMULATED = "simulated"
    OPENAI = "openai"
    NOOP = "noop"


class Admission(StrEnum):
    """The treatment of a batch whose deadline cannot be guaranteed."""

    OPEN = "open"
    STRICT = "strict"


class Settings(BaseSettings):
    """The frozen settings of a process; times are in seconds unless described otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    database_url: SecretStr = Field(
        default=SecretStr(""), description="PostgreSQL, as `postgresql://user:password@host/db`."
    )
    database_pool_size: int = Field(default=8, ge=1, description="Connections a process may hold.")
    database_timeout: float = Field(
        default=30.0, gt=0, description="Seconds without an answer until a connection is given up."
    )
    object_store_url: str = Field(
        default="", description="`file:///path`, `s3://bucket/prefix`, `gs://…` or `az://…`."
    )
    api_key_pepper: SecretStr = Field(
        default=SecretStr(""), description="Secret key of the hash that API keys are stored as."
    )
    anonymous_tenant: str | None = Field(
        default=None,
        description="Name of the tenant that requests without a key act for. Unset: 401. "
        "For a trusted network only.",
    )
    event_sink: str | None = Field(
        default=None,
        validation_alias="K_SINK",
        description="Where CloudEvents are sent: the broker's ingress.",
    )
    event_sink_timeout: float = Field(
        default=10.0,
        gt=0,
        description="Seconds without an answer after which an event is sent again later. Nobody waits "
        "for it: Knative's default broker answers only once the subscriber has.",
    )

    max_file_bytes: int = Field(default=200_000_000, gt=0, description="Largest upload, in bytes.")
    file_expiry: int = Field(
        default=2_592_000, gt=0, description="Seconds that an uploaded file is kept."
    )
    max_batch_lines: int = Field(default=50_000, gt=0, description="Most requests a file.")
    max_line_bytes: int = Field(
        default=33_554_432, gt=0, description="Largest request, in bytes: images travel in it."
    )
    endpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        default=ENDPOINTS, description="Endpoints that batches may name, comma-separated."
    )
    shortest_window: int = Field(default=60, ge=1, description="Shortest completion window.")
    longest_window: int = Field(default=604_800, ge=1, description="Longest completion window.")
    cancel_grace: float = Field(
        default=10.0, ge=0, description="Seconds that running lines of a cancelled batch get."
    )

    admission: Admission = Field(
        default=Admission.OPEN,
        description="A batch whose deadline dedicated capacity alone could not hold: `open` takes "
        "it, at risk; `strict` refuses it and names the shortest window that can be held.",
    )
    tenant_requests_per_minute: int | None = Field(
        default=None, ge=1, description="API requests a minute of a new tenant. Unset: no limit."
    )
    tenant_active_batches: int | None = Field(
        default=None, ge=1, description="Batches at a time of a new tenant. Unset: no limit."
    )
    tenant_queued_lines: int | None = Field(
        default=None, ge=1, description="Queued requests of a new tenant. Unset: no limit."
    )
    tenant_running_lines: int | None = Field(
        default=None,
        ge=1,
        description="Requests of a new tenant that run at a time. Unset: no limit.",
    )
    spot_price: float = Field(default=1.0, ge=0, description="What one spot replica costs an hour.")
    dedicated_price: float = Field(
        default=3.0, ge=0, description="What one dedicated replica costs an hour."
    )
    currency: str = Field(
        default="spot-hours",
        min_length=1,
        max_length=16,
        description="What prices are in: `USD`, `EUR`; the default counts in hours of a spot replica.",
    )

    client_timeout: float = Field(
        default=15.0,
        gt=0,
        description="Seconds that a client may take for the head of a request, and then keep a thread "
        "waiting: sending a body, or taking an answer.",
    )
    client_rate: float = Field(
        default=16_384.0,
        gt=0,
        description="Bytes a second that a caller with a key must send or take, on average, to go on "
        "for longer than that.",
    )
    health_port: int = Field(default=8081, description="Port of `/health/*` and `/metrics`.")
    log_format: LogFormat = Field(default=LogFormat.JSON, description="`json` or `text`.")
    log_level: LogLevel = Field(
        default=LogLevel.INFO, description="`debug`, `info`, `warning` or `error`."
    )

    engine: EngineKind = Field(default=EngineKind.SIMULATED, description="What runs the lines.")
    engine_url: str = Field(
        default="http://127.0.0.1:8000", description="OpenAI-compatible upstream, without `/v1`."
    )
    engine_api_key: SecretStr = Field(
        default=SecretStr(""), description="Key that the upstream wants, if any."
    )
    engine_timeout: float = Field(default=600.0, gt=0, description="Seconds for one request.")
    max_response_bytes: int = Field(
        default=67_108_864,
        ge=1024,
        le=268_435_456,
        description="Largest answer, in bytes: a request whose answer is larger fails at once.",
    )
    simulated_seed: int = Field(default=0, description="Seed of the simulated engine.")
    simulated_latency: float = Field(
        default=0.2, ge=0, description="Mean seconds of a simulated request."
    )
    simulated_tokens: int = Field(default=64, ge=1, description="Mean tokens of a response.")
    simulated_failure_rate: float = Field(
        default=0.0, ge=0, le=1, description="Share of attempts that answer 500."
    )
    simulated_interruption_rate: float = Field(
        default=0.0, ge=0, le=1, description="Share of spot attempts that are interrupted."
    )
    simulated_faults: FaultPlan = Field(
        default="",
        description="Faults on command, `[WHO:]KIND[=VALUE][@FROM-TO[/PERIOD]][:SHARE]`, "
        "comma-separated: `down@60-75,1/4:500:0.1`. See [simulated-engine.md](simulated-engine.md).",
    )

    worker_concurrency: int = Field(default=32, ge=1, description="Requests in flight a worker.")
    worker_prefetch: int = Field(
        default=16, ge=0, description="Lines a worker holds ready beyond those in flight."
    )
    worker_claim_size: int = Field(default=200, ge=1, description="Most lines of one claim.")
    worker_memory: int = Field(
        default=268_435_456,
        ge=1_048_576,
        description="Bytes of requests and answers that a worker holds: over it, it starts nothing.",
    )
    worker_flush_lines: int = Field(default=100, ge=1, description="Results of one write.")
    worker_flush_interval: float = Field(default=0.1, gt=0, description="Seconds between writes.")
    worker_poll_initial: float = Field(default=0.25, gt=0, description="First wait when idle.")
    worker_poll_cap: float = Field(default=0.5, gt=0, description="Longest wait when idle.")
    worker_grace: float = Field(
        default=20.0, ge=0, description="Seconds for work in hand after SIGTERM."
    )
    lease_duration: float = Field(
        default=30.0, gt=0, description="Seconds a silent worker keeps its lines."
    )
    max_attempts: int = Field(default=5, ge=1, description="Tries of a line that keeps failing.")
    max_lost_leases: int = Field(
        default=5, ge=1, description="Workers that one line may take down before it is set aside."
    )
    retry_base: float = Field(
        default=8.0,
        gt=0,
        description="First retry waits from this to twice this, each further one twice as long: five "
        "attempts of a request take at least two minutes, where its window allows it.",
    )
    retry_cap: float = Field(
        default=120.0,
        gt=0,
        description="No request waits longer than this for its next attempt, whatever Retry-After says.",
    )

    dedicated_rate: float = Field(
        default=2.0,
        gt=0,
        description="Lines a second of one dedicated replica, until enough of it is measured.",
    )
    dedicated_replicas: int = Field(
        default=2, ge=0, description="Most dedicated replicas, of the local stack too."
    )
    spot_replicas: int = Field(
        default=4, ge=0, description="Most spot replicas, of the local stack too."
    )
    spot_rows_per_replica: int = Field(default=5, ge=1, description="KEDA's target for spot.")
    dedicated_rows_per_replica: int = Field(
        default=10, ge=1, description="KEDA's target for dedicated."
    )
    cold_start: float = Field(
        default=180.0,
        ge=0,
        description="Most seconds from wanting a dedicated replica until it works: KEDA's poll, a "
        "node, an image, a model.",
    )
    safety_margin: float = Field(
        default=30.0,
        ge=0,
        description="Seconds before a deadline that are not counted on, for ticks that come late and "
        "what a batch needs after its last line.",
    )
    tick: float = Field(
        default=10.0,
        gt=0,
        description="Seconds between scheduler ticks: the PingSource's schedule.",
    )
    stalled_after: float = Field(
        default=30.0, gt=0, description="Seconds until a step without progress is started again."
    )
    history_retention: int = Field(
        default=604_800,
        ge=3600,
        description="Seconds that samples of queues and replicas, one a minute, are kept for the "
        "portal.",
    )
    audit_retention: int = Field(
        default=34_560_000,
        ge=2_592_000,
        description="Seconds that the audit log is kept; at least 30 days.",
    )

    portal_secret: SecretStr = Field(
        default=SecretStr(""), description="Signs the portal's session cookies."
    )
    portal_password_hash: SecretStr = Field(
        default=SecretStr(""),
        description="What `lowtide portal-password` printed: who knows the password signs in to the "
        "portal as operator of all tenants. Unset: nobody does.",
    )
    portal_viewer_password_hash: SecretStr = Field(
        default=SecretStr(""),
        description="The same for who looks at all tenants and changes nothing.",
    )
    portal_tenant_database_url: SecretStr = Field(
        default=SecretStr(""),
        description="The database as the role `lowtide_api`: through it, who signs in with an API key "
        "sees one tenant. Unset: no sign-in with a key.",
    )
    portal_key_role: Role = Field(
        default=Role.OPERATOR,
        description="Who signs in with an API key may cancel and requeue, as with the API "
        "(`operator`), or look only (`viewer`).",
    )
    portal_session_seconds: int = Field(
        default=43_200, ge=60, description="Seconds until the portal asks who you are again."
    )
    portal_https_only: bool = Field(
        default=False, description="Whether session cookies are sent over HTTPS alone."
    )
    portal_trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = Field(
        default=(),
        description="Addresses or networks of proxies in front of the portal, comma-separated: their "
        "`X-Forwarded-For` and `X-Forwarded-Proto` are believed, nobody else's. Name yours, as sign-in "
        "counts wrong tries by address.",
    )
    portal_host: str = Field(default="127.0.0.1", description="Address the portal listens on.")
    portal_port: int = Field(default=8090, description="Port the portal listens on.")
    api_url: str = Field(
        default="http://127.0.0.1:8080", description="Base URL that the portal shows and probes."
    )
    portal_probes_api: bool = Field(
        default=True,
        description="Whether the portal asks the API every few seconds. Off, its health is what its "
        "functions noted, and they can scale to zero.",
    )
    grafana_url: WebAddress | None = Field(
        default=None,
        description="Grafana with the dashboards of `monitoring/`, as browsers reach it. Unset: no link.",
    )
    prometheus_url: WebAddress | None = Field(
        default=None, description="Prometheus, as browsers reach it. Unset: no link."
    )
    alertmanager_url: WebAddress | None = Field(
        default=None,
        description="Alertmanager, as browsers reach it. Unset: no link, and no alerts on the portal.",
    )
    alertmanager_api_url: WebAddress | None = Field(
        default=None,
        description="Alertmanager, as the portal itself reaches it. Unset: `LOWTIDE_ALERTMANAGER_URL`.",
    )
    trace_url: TraceAddress | None = Field(
        default=None,
        description="Page of a trace, as browsers reach it, with `{trace_id}` in it. Unset: no link.",
    )

    @field_validator("endpoints", "portal_trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Yield the fields for `repr`, with the passwords in addresses masked."""
        for name, value in super().__repr_args__():
            yield name, masked(value) if isinstance(value, str) else value


def secret_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values to mask in logs: secret settings, passwords in addresses, AWS keys."""
    names = [
        PREFIX + name.upper()
        for name, setting in Settings.model_fields.items()
        if setting.annotation is SecretStr
    ]
    values = [environment.get(name, "") for name in (*names, *_AWS_SECRETS)]
    passwords = [_password(value) for value in environment.values() if "://" in value]
    found = {value for value in (*values, *passwords) if len(value) >= _SHORTEST_SECRET}
    # Longest first: an address before the password in it.
    return tuple(sorted(found, key=len, reverse=True))


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:
        return ""


def unknown_variables(environment: dict[str, str] | None = None) -> list[str]:
    """Return the `LOWTIDE_*` variables that no setting reads; these are typos."""
    known = {
        PREFIX + name.upper()
        for name, setting in Settings.model_fields.items()
        if setting.validation_alias is None
    }
    return sorted(
        name
        for name in (os.environ if environment is None else environment)
        if name.startswith(PREFIX) and name not in known
    )


def read_settings() -> Settings:
    """Read the environment; raises ValueError for an invalid value or an unknown variable."""
    if unknown := unknown_variables():
        raise ValueError(
            f"Unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}: "
            "see docs/settings.md for the names."
        )
    return Settings()
