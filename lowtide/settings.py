"""The settings of all processes, read once from `LOWTIDE_*` environment variables."""

from __future__ import annotations

import ipaddress
import os
from base64 import b64decode
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lowtide.core.durations import parse_seconds
from lowtide.core.fault_plans import parse_faults
from lowtide.core.ids import LAST_CELL
from lowtide.core.pools import SPOT_HOURS
from lowtide.core.redaction import masked
from lowtide.core.scopes import Role
from lowtide.files.lines import ENDPOINTS
from lowtide.telemetry.logs import LogFormat, LogLevel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails


PREFIX = "LOWTIDE_"
_AWS_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_MASTER_KEY_BYTES: Final = 32
_CONCURRENCY: Final = 32
_PREFETCH: Final = 16
_SHORTEST_SECRET = 6  # a shorter value, such as `test`, also occurs in ordinary log text


def _web_address(value: str) -> str:
    """Validate an address to be shown as a link; raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must start with http:// or https:// and have a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "must have no user, query or fragment: it is public, and paths are appended"
        )
    return value


WebAddress = Annotated[str, AfterValidator(_web_address)]


def _trace_address(value: str) -> str:
    """Validate the address of a trace's page, with a placeholder for the id; raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError("must start with http:// or https:// and have a host but no user")
    if "{trace_id}" not in value:
        raise ValueError("must contain {trace_id}, the placeholder of the trace's id")
    return value


def _fault_plan(value: str) -> str:
    """Validate a fault plan; raises ValueError."""
    parse_faults(value)
    return value


FaultPlan = Annotated[str, AfterValidator(_fault_plan)]
TraceAddress = Annotated[str, AfterValidator(_trace_address)]


def _revision_name(value: str) -> str:
    """Validate the name of a model's revision, which every answer carries; raises ValueError."""
    if len(value) > 200 or not value.isprintable():
        raise ValueError("must be at most 200 printable characters")
    return value


RevisionName = Annotated[str, AfterValidator(_revision_name)]


def _network(value: str) -> str:
    """Validate an address or a network; raises ValueError."""
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"must be addresses or networks such as 10.0.0.0/8: {error}") from error
    return value


Network = Annotated[str, AfterValidator(_network)]


def _seconds(value: object) -> object:
    """Return the seconds of a duration as text; raises ValueError."""
    if not isinstance(value, str):
        return value
    seconds = parse_seconds(value)
    if seconds is None:
        raise ValueError("must be a duration such as 30d, 1h30m, 45s or 250ms, or seconds")
    return seconds


DURATION: Final = BeforeValidator(_seconds, json_schema_input_type=float | str)
"""Marks the settings that are durations; docs/generate.py looks for it."""
Duration = Annotated[float, DURATION]
WholeSeconds = Annotated[int, DURATION]


def master_key_of(value: SecretStr) -> bytes | None:
    """Return the 32 bytes of a master key, None if it is not set; raises ValueError."""
    if not value.get_secret_value():
        return None
    try:
        key = b64decode(value.get_secret_value(), validate=True)
    except ValueError:
        key = b""
    if len(key) != _MASTER_KEY_BYTES:
        raise ValueError("must be 32 bytes in Base64, such as from `openssl rand -base64 32`")
    return key


def _master_key(value: SecretStr) -> SecretStr:
    """Validate a master key; raises ValueError."""
    master_key_of(value)
    return value


MasterKey = Annotated[SecretStr, AfterValidator(_master_key)]


AUTO: Final = "auto"
NumberOrAuto = Literal["auto"] | int


def at_least(least: int) -> BeforeValidator:
    """Return the validation of a whole number from `least` on, or `auto`."""

    def check(value: object) -> object:
        if value == AUTO:
            return value
        try:
            number = int(str(value))
        except ValueError:
            number = least - 1
        if number < least:
            raise ValueError(f"must be {AUTO} or a whole number of at least {least}")
        return number

    return BeforeValidator(check)


class EngineKind(StrEnum):
    """The engine that runs requests."""

    SIMULATED = "simulated"
    OPENAI = "openai"
    NOOP = "noop"


class EngineShare(StrEnum):
    """The share of an engine that spot workers use."""

    ALL = "all"
    SPARE = "spare"


class Admission(StrEnum):
    """The treatment of a batch whose deadline cannot be guaranteed."""

    OPEN = "open"
    STRICT = "strict"


class Settings(BaseSettings):
    """The frozen settings of a process; durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    database_url: SecretStr = Field(
        default=SecretStr(""),
        description="PostgreSQL URL: `postgresql://user:password@host/db`, with libpq's `sslmode` and "
        "`sslrootcert`. `verify-full` is the default for another machine.",
    )
    database_pool_size: int = Field(
        default=8, ge=1, description="Max database connections per process."
    )
    database_timeout: Duration = Field(
        default=30.0, gt=0, description="Time without a response before a connection is closed."
    )
    object_store_url: str = Field(
        default="",
        description="Object store: `file:///path`, `s3://bucket/prefix`, `gs://…` or `az://…`.",
    )
    object_store_public_url: WebAddress | None = Field(
        default=None,
        description="Endpoint of the object store for presigned URLs, if clients reach it at another "
        "address than this process: `https://s3.example.com`. It replaces the clouds' usual "
        "environment variables, and signatures cover its host.",
    )
    presigned_downloads: bool = Field(
        default=False,
        description="Answer downloads of files with a redirect to a presigned URL of the object store, "
        "where a file is one object there. Needs a bucket.",
    )
    bucket_credentials: str = Field(
        default="",
        description="Path of a TOML file with named credentials of registered buckets. Unset: only those of the "
        "environment, under the name `default`. See [buckets.md](buckets.md).",
    )
    api_key_pepper: SecretStr = Field(
        default=SecretStr(""), description="Secret key for hashing API keys."
    )
    api_key_pepper_previous: SecretStr = Field(
        default=SecretStr(""),
        description="The other pepper during a rotation: a key that is hashed with it works, and is hashed anew when it is used.",
    )
    master_key: MasterKey = Field(
        default=SecretStr(""),
        description="Key that wraps the data keys of zero retention: 32 bytes in Base64, from `openssl "
        "rand -base64 32`. Unset: no zero retention. See [zero-retention.md](zero-retention.md).",
    )
    master_key_previous: MasterKey = Field(
        default=SecretStr(""),
        description="The previous master key, until `lowtide rewrap-keys` has run.",
    )
    identity: str = Field(
        default="",
        description="Path of the YAML file that names the identity providers whose tokens are accepted beside "
        "API keys. Unset: none. See [identity.md](identity.md).",
    )
    anonymous_tenant: str | None = Field(
        default=None,
        description="Tenant of requests without an API key. Unset: 401. For trusted networks only.",
    )
    event_sink: str | None = Field(
        default=None,
        validation_alias="K_SINK",
        description="URL that CloudEvents are sent to: the broker's ingress.",
    )
    event_sink_timeout: Duration = Field(
        default=10.0,
        gt=0,
        description="Time without a response before an event is queued for another attempt. No caller "
        "waits for it: Knative's default broker responds only after the subscriber has.",
    )

    cell: int | None = Field(
        default=None,
        ge=1,
        le=LAST_CELL,
        description="Number of this installation among the cells behind a front, which the ids of its files, "
        "uploads and batches carry. Unset: it stands alone.",
    )
    cells: str = Field(
        default="",
        description="Path of `cells.yaml`, for the front and the portal: see docs/cells.md.",
    )
    cells_token: SecretStr = Field(
        default=SecretStr(""),
        description="Secret that all cells and their front share, for heartbeats alone. Unset: a cell "
        "answers none.",
    )
    max_file_bytes: int = Field(
        default=200_000_000, gt=0, le=80_000_000_000, description="Max upload size, in bytes."
    )
    file_expiry: WholeSeconds = Field(
        default=2_592_000, gt=0, description="Time that an uploaded file is kept."
    )
    max_batch_lines: int = Field(default=50_000, gt=0, description="Max requests per file.")
    segment_lines: int = Field(
        default=16_384,
        gt=0,
        description="Max requests of a segment: larger batches are split and finalized a segment at a "
        "time, in parallel, and while others run.",
    )
    one_model_per_file: bool = Field(
        default=False,
        description="Refuse files that mix models, as OpenAI does. If off, each request goes to the fleet "
        "of its own model.",
    )
    prefix_order: bool = Field(
        default=True,
        description="Run requests whose prompts begin alike one after the other, for engines with a prefix "
        "cache: see [concurrency.md](concurrency.md). Takes effect when a file is checked.",
    )
    max_line_bytes: int = Field(
        default=33_554_432,
        gt=0,
        description="Max size of a request in bytes, including inline images.",
    )
    endpoints: Annotated[tuple[str, ...], NoDecode] = Field(
        default=ENDPOINTS, description="Endpoints that batches may use, comma-separated."
    )
    shortest_window: WholeSeconds = Field(default=60, ge=1, description="Min completion window.")
    longest_window: WholeSeconds = Field(
        default=604_800, ge=1, description="Max completion window."
    )
    cancel_grace: Duration = Field(
        default=10.0,
        ge=0,
        description="Time for the running requests of a cancelled batch to finish.",
    )

    admission: Admission = Field(
        default=Admission.OPEN,
        description="Admission of batches whose deadline dedicated capacity alone cannot meet: `open` "
        "accepts them as at risk; `strict` rejects them and names the shortest feasible "
        "window.",
    )
    tenant_requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Max API requests per minute of a new tenant. Unset: no limit.",
    )
    tenant_active_batches: int | None = Field(
        default=None, ge=1, description="Max active batches of a new tenant. Unset: no limit."
    )
    tenant_queued_lines: int | None = Field(
        default=None, ge=1, description="Max queued requests of a new tenant. Unset: no limit."
    )
    tenant_running_lines: int | None = Field(
        default=None,
        ge=1,
        description="Max running requests of a new tenant. Unset: no limit.",
    )
    tenant_enqueued_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Max estimated input tokens of a new tenant's unfinished requests. Unset: no limit.",
    )
    tenant_tokens_per_day: int | None = Field(
        default=None,
        ge=1,
        description="Max input and output tokens of a new tenant per day in UTC. Unset: no limit.",
    )
    tenant_spend_per_month: int | None = Field(
        default=None,
        ge=1,
        description="Max cost of a new tenant per month in UTC, in the currency of the prices. Unset: "
        "no limit.",
    )
    spot_price: float = Field(default=1.0, ge=0, description="Price of one spot replica per hour.")
    dedicated_price: float = Field(
        default=3.0, ge=0, description="Price of one dedicated replica per hour."
    )
    currency: str = Field(
        default=SPOT_HOURS,
        min_length=1,
        max_length=16,
        description="Currency of the prices, such as `USD` or `EUR`. The default counts hours of a spot "
        "replica.",
    )

    client_timeout: Duration = Field(
        default=15.0,
        gt=0,
        description="Max time for a client to send the request headers, and to block a thread while it"
        " sends the body or reads the response.",
    )
    client_rate: float = Field(
        default=16_384.0,
        gt=0,
        description="Bytes per second that an authenticated client must send or read on average to exceed"
        " that time.",
    )
    health_port: int = Field(default=8081, description="Port of `/health/*` and `/metrics`.")
    log_format: LogFormat = Field(default=LogFormat.JSON, description="`json` or `text`.")
    log_level: LogLevel = Field(
        default=LogLevel.INFO, description="`debug`, `info`, `warning` or `error`."
    )

    fleets: str = Field(
        default="",
        description="Path of the YAML file that declares the fleets. Unset: one fleet, `default`, serves any "
        "model with the settings of this table. See [fleets.md](fleets.md).",
    )
    fleet: str = Field(
        default="default", min_length=1, description="Fleet that a worker belongs to."
    )
    engine: EngineKind = Field(
        default=EngineKind.SIMULATED,
        description="Engine that runs the requests: `simulated`, `openai` or `noop`.",
    )
    engine_url: str = Field(
        default="http://127.0.0.1:8000",
        description="Base URL of the OpenAI-compatible engine, without `/v1`.",
    )
    engine_api_key: SecretStr = Field(
        default=SecretStr(""), description="API key of the engine, if it requires one."
    )
    engine_share: EngineShare = Field(
        default=EngineShare.ALL,
        description="`spare`: spot workers use what other clients leave of the engine, which serves "
        "them, too. See [concurrency.md](concurrency.md#spare-capacity-of-a-live-service).",
    )
    engine_first_token_target: Annotated[float | None, DURATION] = Field(
        default=None,
        gt=0,
        description="Mean time to first token that spare work keeps the engine under. Unset: only its "
        "queue counts.",
    )
    engine_timeout: Duration = Field(
        default=600.0, gt=0, description="Timeout of one request to the engine."
    )
    max_response_bytes: int = Field(
        default=67_108_864,
        ge=1024,
        le=268_435_456,
        description="Max size of a response, in bytes. A request with a larger response fails at once.",
    )
    simulated_seed: int = Field(default=0, description="Seed of the simulated engine.")
    simulated_latency: Duration = Field(
        default=0.2, ge=0, description="Mean latency of a simulated request."
    )
    simulated_tokens: int = Field(
        default=64, ge=1, description="Mean tokens of a simulated response."
    )
    simulated_failure_rate: float = Field(
        default=0.0, ge=0, le=1, description="Share of simulated attempts that return 500."
    )
    simulated_interruption_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of simulated spot attempts that are interrupted.",
    )
    simulated_faults: FaultPlan = Field(
        default="",
        description="Faults of the simulated engine, `[WHO:]KIND[=VALUE][@FROM-TO[/PERIOD]][:SHARE]`, "
        "comma-separated: `down@60-75,1/4:500:0.1`. See "
        "[simulated-engine.md](simulated-engine.md).",
    )

    model_revision: RevisionName = Field(
        default="",
        description="Revision of the model that a worker's engine serves: `x_lowtide.model_revision` of "
        "each answer. Unset: absent. See [deploy.md](deploy.md#roll-a-new-revision-of-a-model).",
    )
    worker_concurrency: Annotated[NumberOrAuto, at_least(1)] = Field(
        default=AUTO,
        description="Max requests in flight per worker. `auto` finds what the engine can use: see "
        "[concurrency.md](concurrency.md). For the simulated and the no-op engine it is 32.",
    )
    worker_max_concurrency: int = Field(
        default=1024, ge=1, description="Max requests in flight that `auto` may find."
    )
    worker_prefetch: Annotated[NumberOrAuto, at_least(0)] = Field(
        default=AUTO,
        description="Requests that a worker claims in addition to those in flight. `auto`: as many as the "
        "engine takes while a claim is under way, twice. For the simulated engine it is 16.",
    )
    worker_memory: int = Field(
        default=268_435_456,
        ge=1_048_576,
        description="Max bytes of requests and responses in a worker. Above it, the worker starts no "
        "requests.",
    )
    worker_flush_interval: Duration = Field(
        default=0.1, gt=0, description="Max time until a result is written."
    )
    worker_poll_initial: Duration = Field(
        default=0.25, gt=0, description="First poll interval of an idle worker."
    )
    worker_poll_cap: Duration = Field(
        default=0.5, gt=0, description="Max poll interval of an idle worker."
    )
    worker_grace: Duration = Field(
        default=20.0, ge=0, description="Time for running requests to finish after SIGTERM."
    )
    lease_duration: Duration = Field(
        default=30.0,
        gt=0,
        description="Time until the lease of an unresponsive worker expires and its requests are "
        "released.",
    )
    max_attempts: int = Field(default=5, ge=1, description="Max attempts of a request.")
    max_lost_leases: int = Field(
        default=5, ge=1, description="Lost workers in a row after which a request is dead-lettered."
    )
    retry_base: Duration = Field(
        default=8.0,
        gt=0,
        description="The first retry waits between one and two times this, each further one twice as "
        "long: five attempts take at least two minutes, if the completion window allows it.",
    )
    retry_cap: Duration = Field(
        default=120.0,
        gt=0,
        description="Max delay before the next attempt, regardless of Retry-After.",
    )

    dedicated_rate: float = Field(
        default=2.0,
        gt=0,
        description="Assumed requests per second of one dedicated replica, until measurements suffice.",
    )
    dedicated_replicas: int = Field(
        default=2,
        ge=0,
        description="Max dedicated replicas, also of the local stack: there 1 by default with "
        "`LOWTIDE_ENGINE=openai`, as one worker per engine is the rule.",
    )
    spot_replicas: int = Field(
        default=4,
        ge=0,
        description="Max spot replicas, also of the local stack: there 1 by default with "
        "`LOWTIDE_ENGINE=openai`, as one worker per engine is the rule.",
    )
    spot_rows_per_replica: int = Field(
        default=5, ge=1, description="KEDA's target for spot: requests per replica."
    )
    dedicated_rows_per_replica: int = Field(
        default=10, ge=1, description="KEDA's target for dedicated: requests per replica."
    )
    cold_start: Duration = Field(
        default=180.0,
        ge=0,
        description="Max time until a new dedicated replica is working: KEDA's poll, node, image and "
        "model.",
    )
    safety_margin: Duration = Field(
        default=30.0,
        ge=0,
        description="Time before a deadline that plans keep free for late ticks and for finalizing.",
    )
    tick: Duration = Field(
        default=10.0,
        gt=0,
        description="Time between scheduler ticks. Must match the schedule of the PingSource.",
    )
    stalled_after: Duration = Field(
        default=30.0, gt=0, description="Time until a step without progress is restarted."
    )
    history_retention: WholeSeconds = Field(
        default=604_800,
        ge=3600,
        description="Time that the portal's samples of queues and replicas, one per minute, are kept.",
    )
    batch_retention: WholeSeconds = Field(
        default=2_592_000,
        ge=3600,
        description="Time after a batch's end until its requests, results, events and dead letters are "
        "deleted, and its output and error files expire. A tenant may have another, and a batch its "
        "own `output_expires_after`.",
    )
    record_retention: WholeSeconds = Field(
        default=34_560_000,
        ge=86_400,
        description="Time after a batch's end until the batch itself is deleted, with its counts, "
        "usage and cost.",
    )
    audit_retention: WholeSeconds = Field(
        default=34_560_000,
        ge=2_592_000,
        description="Time that the audit log is kept; at least `30d`.",
    )

    portal_secret: SecretStr = Field(
        default=SecretStr(""), description="Secret that signs the portal's session cookies."
    )
    portal_secret_previous: SecretStr = Field(
        default=SecretStr(""),
        description="The other secret during a rotation: cookies that are signed with it are valid, too.",
    )
    portal_password_hash: SecretStr = Field(
        default=SecretStr(""),
        description="Hash of the operator's password, from `lowtide portal-password`, with full "
        "access to all tenants. Unset: no sign-in as operator.",
    )
    oidc_client_secret: SecretStr = Field(
        default=SecretStr(""),
        description="Secret of the portal as a client of the identity provider. Unset: a public client. See "
        "[identity.md](identity.md#sign-in-to-the-portal).",
    )
    portal_viewer_password_hash: SecretStr = Field(
        default=SecretStr(""),
        description="Hash of the viewer's password, with read-only access to all tenants. Unset: "
        "no sign-in as viewer.",
    )
    portal_tenant_database_url: SecretStr = Field(
        default=SecretStr(""),
        description="Database URL with the role `lowtide_api`, for sign-in with an API key, which gives "
        "access to one tenant. Unset: no sign-in with API keys.",
    )
    portal_key_role: Literal[Role.VIEWER, Role.OPERATOR] = Field(
        default=Role.OPERATOR,
        description="Role after sign-in with an API key: `operator` may cancel and requeue, as with the "
        "API; `viewer` is read-only.",
    )
    portal_session_seconds: WholeSeconds = Field(
        default=43_200, ge=60, description="Time until a portal session expires."
    )
    portal_https_only: bool = Field(
        default=False, description="Send session cookies over HTTPS only."
    )
    portal_trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = Field(
        default=(),
        description="Addresses or networks of trusted proxies in front of the portal, comma-separated. "
        "`X-Forwarded-For` and `X-Forwarded-Proto` are ignored from any other address. Set "
        "yours: failed sign-ins are counted per address.",
    )
    portal_host: str = Field(default="127.0.0.1", description="Address the portal listens on.")
    portal_port: int = Field(default=8090, description="Port the portal listens on.")
    api_url: str = Field(
        default="http://127.0.0.1:8080",
        description="Base URL of the API, which the portal shows and probes.",
    )
    portal_probes_api: bool = Field(
        default=True,
        description="Let the portal probe the API every few seconds. If off, the API's health is derived "
        "from its functions' last calls, and they can scale to zero.",
    )
    grafana_url: WebAddress | None = Field(
        default=None,
        description="URL of Grafana for browsers, with the dashboards of `monitoring/`. Unset: no link.",
    )
    prometheus_url: WebAddress | None = Field(
        default=None, description="URL of Prometheus for browsers. Unset: no link."
    )
    alertmanager_url: WebAddress | None = Field(
        default=None,
        description="URL of Alertmanager for browsers. Unset: no link, and no alerts in the portal.",
    )
    alertmanager_api_url: WebAddress | None = Field(
        default=None,
        description="URL of Alertmanager for the portal itself. Unset: `LOWTIDE_ALERTMANAGER_URL`.",
    )
    trace_url: TraceAddress | None = Field(
        default=None,
        description="URL of a trace for browsers, with the placeholder `{trace_id}`. Unset: no link.",
    )

    @field_validator("endpoints", "portal_trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("presigned_downloads")
    @classmethod
    def _check_bucket(cls, value: bool, info: ValidationInfo) -> bool:
        scheme = urlsplit(info.data.get("object_store_url", "")).scheme
        if value and scheme in {"file", "memory"}:
            raise ValueError(f"needs a bucket, but LOWTIDE_OBJECT_STORE_URL is {scheme}://")
        return value

    @field_validator("engine_share")
    @classmethod
    def _check_share(cls, value: EngineShare, info: ValidationInfo) -> EngineShare:
        if value is EngineShare.SPARE and info.data.get("engine") is not EngineKind.OPENAI:
            raise ValueError("must be all, unless LOWTIDE_ENGINE is openai")
        return value

    @property
    def concurrency(self) -> int | None:
        """The number of requests in flight per worker; None for workers that search for it."""
        if self.worker_concurrency != AUTO:
            return self.worker_concurrency
        return None if self.engine is EngineKind.OPENAI else _CONCURRENCY

    @property
    def max_concurrency(self) -> int:
        """The most requests in flight per worker, found or given."""
        return self.concurrency or self.worker_max_concurrency

    @property
    def assumed_concurrency(self) -> int:
        """The number of requests in flight that plans reckon with until a search found another."""
        return self.concurrency or _CONCURRENCY

    @property
    def prefetch(self) -> int | None:
        """The number of requests claimed beyond those in flight; None to follow the engine."""
        if self.worker_prefetch != AUTO:
            return self.worker_prefetch
        return _PREFETCH if self.engine is EngineKind.SIMULATED else None

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
    secrets = {value for value in (*values, *passwords) if len(value) >= _SHORTEST_SECRET}
    # Longest first: an address before the password in it.
    return tuple(sorted(secrets, key=len, reverse=True))


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:
        return ""


def unknown_variables(environment: dict[str, str] | None = None) -> list[str]:
    """Return the `LOWTIDE_*` variables that no setting reads; these are typos."""
    names = {
        PREFIX + name.upper()
        for name, setting in Settings.model_fields.items()
        if setting.validation_alias is None
    }
    return sorted(
        name
        for name in (os.environ if environment is None else environment)
        if name.startswith(PREFIX) and name not in names
    )


def read_settings() -> Settings:
    """Read the environment; raises ValueError for an invalid value or an unknown variable."""
    if unknown := unknown_variables():
        raise ValueError(
            f"Unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}: "
            "see docs/settings.md for the names."
        )
    try:
        return Settings()
    except ValidationError as error:
        # Pydantic's own text names the field instead of the variable.
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
    raise ValueError("Invalid settings: " + "; ".join(problems) + ". See docs/settings.md.")


def _problem(detail: ErrorDetails) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    # A setting with an alias is reported under the alias.
    variable = PREFIX + name.upper() if name in Settings.model_fields else name
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return f"{variable}: {message}"
