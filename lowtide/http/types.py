"""The JSON objects of the API, from which the OpenAPI document is generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, field

from lowtide.planning.reasons import Reason  # noqa: TC001 - msgspec reads it at run time
from lowtide.planning.urgency import MAX_PRIORITY, MIN_PRIORITY

if TYPE_CHECKING:
    from datetime import datetime


Seconds = Annotated[int, Meta(description="Unix time in seconds.")]
FileId = Annotated[str, Meta(pattern="^file-[0-9a-f]{32}$")]
UploadId = Annotated[str, Meta(pattern="^upload_[0-9a-f]{32}$")]
PartId = Annotated[str, Meta(pattern="^part_[0-9a-f]{32}$")]
BatchId = Annotated[str, Meta(pattern="^batch_[0-9a-f]{32}$")]
MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
ObjectUrl = Annotated[str, Meta(extra_json_schema={"pattern": "^(s3|gs|az)://"})]
InputFileId = Annotated[str, Meta(extra_json_schema={"pattern": "^file-[0-9a-f]{32}$"})]
Window = Annotated[str, Meta(extra_json_schema={"pattern": "^[1-9][0-9]{0,4}[mhd]$"})]
# JSON Schema's integers include 7.0.
WholeNumber = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0, multiple_of=1)]
_PRIORITIES = {"minimum": MIN_PRIORITY, "maximum": MAX_PRIORITY}
Priority = (
    Annotated[int, Meta(extra_json_schema=_PRIORITIES)]
    | Annotated[float, Meta(multiple_of=1, extra_json_schema=_PRIORITIES)]
)
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)]

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class ErrorDetail(msgspec.Struct):
    """An error and its fix."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """The body of every response that is not 2xx."""

    error: ErrorDetail


class FileExtension(msgspec.Struct, kw_only=True):
    """Lowtide's extension to OpenAI's File object.

    With `zero_retention` the file is encrypted, and its key is destroyed with it.
    """

    zero_retention: bool


class File(msgspec.Struct, kw_only=True):
    """A stored file."""

    id: FileId
    size: int = field(name="bytes")
    created_at: Seconds
    expires_at: Seconds | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    x_lowtide: FileExtension
    object: Literal["file"] = "file"


class DeletedFile(msgspec.Struct):
    """The response to a deletion."""

    id: FileId
    deleted: bool = True
    object: Literal["file"] = "file"


class PresignedPart(msgspec.Struct, kw_only=True):
    """A part of a presigned upload: send `bytes` bytes, with these headers, to its URL."""

    id: PartId
    url: str
    method: Literal["PUT"] = "PUT"
    headers: dict[str, str]
    size: int = field(name="bytes")
    expires_at: Seconds


class UploadExtension(msgspec.Struct, kw_only=True):
    """The parts of a presigned upload, in the order of the file."""

    transfer: Literal["presigned"] = "presigned"
    parts: list[PresignedPart]


class Upload(msgspec.Struct, kw_only=True):
    """An upload in parts; `bytes` is the size of the whole file.

    `file` is the file of a completed upload, null once it is deleted. Only the response that creates
    a presigned upload has `x_lowtide`.
    """

    id: UploadId
    size: int = field(name="bytes")
    created_at: Seconds
    expires_at: Seconds
    filename: str
    purpose: Literal["batch"] = "batch"
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None
    x_lowtide: UploadExtension | msgspec.UnsetType = msgspec.UNSET
    object: Literal["upload"] = "upload"


class UploadPart(msgspec.Struct, kw_only=True):
    """A part of an upload."""

    id: PartId
    created_at: Seconds
    upload_id: UploadId
    object: Literal["upload.part"] = "upload.part"


class PresignedPiece(msgspec.Struct, kw_only=True):
    """A URL that returns the next `bytes` bytes of a file."""

    url: str
    size: int = field(name="bytes")


class PresignedContent(msgspec.Struct, kw_only=True):
    """URLs of a file's pieces, whose bytes in a row are the file."""

    file_id: FileId
    size: int = field(name="bytes")
    expires_at: Seconds
    pieces: list[PresignedPiece]
    object: Literal["file.presigned"] = "file.presigned"


class FilePage(msgspec.Struct, kw_only=True):
    """One page of files."""

    data: list[File]
    first_id: FileId | None
    last_id: FileId | None
    has_more: bool
    object: Literal["list"] = "list"


class BatchError(msgspec.Struct):
    """A problem of an input file; `line` counts physical lines from 1."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(msgspec.Struct):
    """The problems of an input file, up to 100."""

    data: list[BatchError]
    object: Literal["list"] = "list"


class RequestCounts(msgspec.Struct):
    """OpenAI's counts: completed + failed never exceeds total, and equals it once final."""

    total: int
    completed: int
    failed: int


class InputTokensDetails(msgspec.Struct):
    """Input tokens by kind."""

    cached_tokens: int


class OutputTokensDetails(msgspec.Struct):
    """Output tokens by kind."""

    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of all results so far."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails


class Cost(msgspec.Struct, kw_only=True):
    """The cost of the results so far, by pool, and on dedicated replicas alone."""

    currency: str
    spot: float
    dedicated: float
    total: float
    all_dedicated: float


class Outcomes(msgspec.Struct, kw_only=True):
    """The requests of a batch by state.

    `dead_lettered` requests are part of `failed`; the other six add up to `request_counts.total`.
    `request_counts.failed` counts the failed, the expired and the cancelled ones.
    """

    queued: int
    running: int
    completed: int
    failed: int
    dead_lettered: int
    expired: int
    cancelled: int


class Bound(msgspec.Struct, kw_only=True):
    """The numbers of a deadline bound.

    `open` requests without a result are due in `seconds`, and `replicas` dedicated workers, each at
    `rate` requests per second, can end `capacity` of them by then.
    """

    open: int
    seconds: float
    replicas: int
    rate: float
    capacity: int


class Risk(msgspec.Struct, kw_only=True):
    """The reason for which a batch is at risk since `since`.

    `bound` and `text`, the reason in words, are those of the last tick.
    """

    reason: Reason
    text: str
    since: Seconds
    bound: Bound | None


class Export(msgspec.Struct, kw_only=True):
    """The copy of a batch's results to the folder `url`.

    It is `pending` until they are copied once the batch has ended. `error` is the last one; a
    pending export is tried again for a day.
    """

    url: str
    state: Literal["pending", "completed", "failed"]
    error: str | None


class Extension(msgspec.Struct, kw_only=True):
    """Lowtide's extension to OpenAI's Batch object.

    `eta` is the expected completion, null if the batch is final or it is unknown; `data_ends_at` is
    when the requests, results, events and dead letters of a final batch are or were deleted; `risk` is null
    unless the scheduler has marked the batch at risk; `pools` counts finished requests; `cost` is
    at the prices that its fleets had at the batch's creation, or those of a fallback when the first
    requests moved there; `trace_id` is the trace of the batch's work, null if it has none; `input_url` is the object that the input file is imported from, and `export` the copy
    of the results to a bucket, each null without one. With `zero_retention` the answers are
    encrypted until their key is destroyed. `priority` is that of
    the request's `x_lowtide`: it orders the batches of one tenant whose deadlines hold.
    """

    user: str
    priority: int
    outcomes: Outcomes
    sla_state: Literal["On track", "At risk", "Met", "Missed", "Not applicable"]
    risk: Risk | None
    deadline: Seconds
    eta: Seconds | None
    data_ends_at: Seconds | None
    pools: dict[str, int]
    cost: Cost
    interruptions: int
    retries: int
    escalations: int
    trace_id: str | None
    input_url: str | None
    export: Export | None
    zero_retention: bool


class Batch(msgspec.Struct, kw_only=True):
    """The current state of a batch."""

    id: BatchId
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: FileId
    completion_window: str
    status: BatchStatus
    output_file_id: FileId | None
    error_file_id: FileId | None
    created_at: Seconds
    in_progress_at: Seconds | None
    expires_at: Seconds
    finalizing_at: Seconds | None
    completed_at: Seconds | None
    failed_at: Seconds | None
    expired_at: Seconds | None
    cancelling_at: Seconds | None
    cancelled_at: Seconds | None
    request_counts: RequestCounts
    usage: Usage
    metadata: Metadata | None
    x_lowtide: Extension
    object: Literal["batch"] = "batch"


class BatchPage(msgspec.Struct, kw_only=True):
    """One page of batches, newest first."""

    data: list[Batch]
    first_id: BatchId | None
    last_id: BatchId | None
    has_more: bool
    object: Literal["list"] = "list"


class LimitUse(msgspec.Struct, kw_only=True):
    """The use of a limit; `limit` is null if there is none, `used` if it is then not counted."""

    used: float | None
    limit: int | None


class MonthUse(msgspec.Struct, kw_only=True):
    """What accepted results used since `since`, to the last one; a cost for each currency.

    `since` is the start of the month in UTC. Costs are at the prices stored with each batch.
    """

    since: Seconds
    requests: int
    input_tokens: int
    output_tokens: int
    costs: list[Cost]


class PausedPool(msgspec.Struct, kw_only=True):
    """A paused pool of a fleet: its workers claim no requests."""

    fleet: str
    pool: Literal["spot", "dedicated"]
    since: Seconds


class TenantUsage(msgspec.Struct, kw_only=True):
    """A tenant's use of its limits, this month's cost, and the pools that are paused now.

    Enqueued tokens are an estimate of unfinished input; days and months are in UTC, and
    `spend_per_month` is in the currency of the prices, where there are several in the one with most.
    """

    tenant: str
    requests_per_minute: LimitUse
    active_batches: LimitUse
    unfinished_requests: LimitUse
    running_requests: LimitUse
    enqueued_tokens: LimitUse
    tokens_per_day: LimitUse
    spend_per_month: LimitUse
    month: MonthUse
    paused_pools: list[PausedPool]
    object: Literal["usage"] = "usage"


class Finding(msgspec.Struct, kw_only=True):
    """A factor that delays a batch, with its numbers; `text` is the factor in words."""

    factor: str
    text: str
    numbers: dict[str, int | float | str]


class Advice(msgspec.Struct, kw_only=True):
    """A change that speeds a batch up, and the expected end with it, null if unknown."""

    factor: str
    text: str
    expected_end: Seconds | None


class ExpectedEnd(msgspec.Struct, kw_only=True):
    """The expected end of a batch: nine of ten are between `low` and `high`; null is unknown.

    Before its last request, `own_ahead` other requests of its tenant are served and `others_ahead` of
    all other tenants.
    """

    low: Seconds | None
    likely: Seconds | None
    high: Seconds | None
    own_ahead: int
    others_ahead: int


class Comparison(msgspec.Struct, kw_only=True):
    """The requests per second of a batch, and the median of up to ten earlier runs.

    Earlier runs are completed batches of the same user, model and endpoint.
    """

    text: str
    rate: float
    usual: float
    runs: int


class Explanation(msgspec.Struct, kw_only=True):
    """The explanation of a batch: what limits it, or limited it.

    `rate` is in requests per second, now while the batch runs, else its mean; the token rates are
    tokens per second, by the mean of a request. A request waited
    `waited_seconds` and ran `request_seconds` on average; the first one started `first_wait_seconds`
    after the file was read. `retry_share` is the share of attempts that failed and were repeated.
    """

    id: BatchId
    at: Seconds
    limiting: Finding
    contributing: list[Finding]
    expected_end: ExpectedEnd | None
    rate: float | None
    input_token_rate: float | None
    output_token_rate: float | None
    waiting: int
    running: int
    waited_seconds: float | None
    request_seconds: float | None
    waiting_share: float | None
    first_wait_seconds: float | None
    retry_share: float
    advice: list[Advice]
    comparison: Comparison | None
    object: Literal["batch.explanation"] = "batch.explanation"


class ModelState(msgspec.Struct, kw_only=True):
    """The fleet that runs a model, and the number of its workers whose engine is available."""

    fleet: str
    workers: int


class Model(msgspec.Struct, kw_only=True):
    """A model that can be requested; with no worker now, its first request starts one."""

    id: str
    created: Seconds
    x_lowtide: ModelState
    owned_by: str = "lowtide"
    object: Literal["model"] = "model"


class ModelPage(msgspec.Struct):
    """All models."""

    data: list[Model]
    object: Literal["list"] = "list"


class Request(msgspec.Struct, kw_only=True):
    """The current state of a request; a `dead_lettered` one is `Failed`."""

    id: str
    line: int
    custom_id: str | None
    status: Literal["Queued", "Running", "Completed", "Failed", "Expired", "Cancelled"]
    dead_lettered: bool
    pool: Literal["spot", "dedicated"] | None
    attempts: int
    interruptions: int
    escalated: bool
    queued_at: Seconds | None
    started_at: Seconds | None
    finished_at: Seconds | None
    status_code: int | None
    error_code: str | None
    error_message: str | None
    object: Literal["batch.request"] = "batch.request"


class RequestPage(msgspec.Struct, kw_only=True):
    """One page of a batch's requests, in input order."""

    data: list[Request]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class SearchedBatch(msgspec.Struct):
    """The batch of a match."""

    id: BatchId
    user: str
    status: BatchStatus
    created_at: Seconds


class SearchMatch(msgspec.Struct, kw_only=True):
    """A batch, file or request, and the field whose value matched.

    `field` is `id`, `custom_id`, `user` or `metadata.` and a key. `batch` is the batch itself, that
    of the request, or the newest that reads or wrote the file, null if there is none.
    """

    kind: Literal["batch", "file", "request"]
    id: str
    field: str
    value: str
    exact: bool
    batch: SearchedBatch | None
    filename: str | None = None
    custom_id: str | None = None
    line: int | None = None
    object: Literal["search.match"] = "search.match"


class SearchPage(msgspec.Struct, kw_only=True):
    """All matches by kind, exact ones first; `more` names the kinds that have further matches."""

    data: list[SearchMatch]
    more: list[Literal["batch", "file", "request"]]
    object: Literal["list"] = "list"


class ExpiresAfter(msgspec.Struct):
    """The expiry of a file."""

    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]
    anchor: Literal["created_at"]


class CreateUpload(msgspec.Struct, kw_only=True):
    """The file to be uploaded in parts; `bytes` is its size, `expires_after` its expiry.

    With the transfer `presigned`, the response has URLs of the object store for the parts. With
    `zero_retention` the parts and the file are encrypted, which excludes that transfer.
    """

    size: WholeNumber = field(name="bytes")
    filename: str
    mime_type: str
    purpose: Annotated[str, Meta(extra_json_schema={"enum": ["batch"]})]
    expires_after: ExpiresAfter | None = None
    transfer: Literal["presigned"] | None = None
    zero_retention: bool = False


class CompleteUpload(msgspec.Struct):
    """The parts in the order of the file, and the file's MD5 in hexadecimal digits to verify.

    No parts are all parts of a presigned upload, which takes no MD5.
    """

    part_ids: list[str]
    md5: Annotated[str, Meta(pattern="^[0-9a-fA-F]{32}$")] | None = None


class CreateExtension(msgspec.Struct, forbid_unknown_fields=True):
    """Lowtide's own parameters of a new batch.

    Of one tenant's batches whose deadlines hold, those with a higher `priority` run first; it is 0
    by default.
    """

    priority: Priority | None = None


class CreateBatch(msgspec.Struct):
    """The parameters of a new batch; `inputFileId` is an alias, `userId` the batch's user.

    Instead of `input_file_id`, `input_url` names an object in a registered bucket, and results are
    copied to the folder `output_url`. A batch of a file with zero retention has it, too;
    `zero_retention` demands such a file, and encrypts an imported one.
    """

    input_file_id: InputFileId | None = None
    endpoint: str | None = None
    completion_window: Window | None = None
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    original_input_file_id: InputFileId | None = field(name="inputFileId", default=None)
    user_id: str | None = field(name="userId", default=None)
    input_url: ObjectUrl | None = None
    output_url: ObjectUrl | None = None
    zero_retention: bool | None = None
    x_lowtide: CreateExtension | None = None


def unix(moment: datetime) -> int:
    return int(moment.timestamp())


def unix_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else unix(moment)
