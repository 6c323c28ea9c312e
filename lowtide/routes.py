"""The API's routes by function, and the handlers for health, models and the documentation."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from hmac import compare_digest
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from flask import Response, request

from lowtide.batches import api as batches_api
from lowtide.batches.model import BatchStatus
from lowtide.cells.model import HEARTBEAT_PATH, TENANT_PATH
from lowtide.core.errors import NotFound, Unauthenticated
from lowtide.core.scopes import Scope
from lowtide.dead_letters import api as dead_letters_api
from lowtide.explain import api as explain_api
from lowtide.files import api as files_api
from lowtide.http import types
from lowtide.http.application import Application, json_response
from lowtide.http.operations import IDEMPOTENCY_KEY, Operation, Parameter, Route
from lowtide.objects.presigned import MAX_SIGNED_SECONDS
from lowtide.reruns import api as reruns_api
from lowtide.search import api as search_api
from lowtide.uploads import api as uploads_api

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flask import Request

    from lowtide.app import App
    from lowtide.http.application import Call
    from lowtide.tenants.usage import TenantUsage


def live(_: App) -> Response:
    """`GET /health/live`: the process responds."""
    return json_response({"status": "ok"})


def ready(app: App) -> Response:
    """`GET /health/ready`: the database responds and is migrated; raises Unavailable."""
    app.readiness.require()
    return json_response({"status": "ok"})


def list_models(call: Call) -> Response:
    """`GET /v1/models`: the models of all fleets, also of those that run no worker now."""
    return json_response(types.ModelPage(_models(call)))


def get_model(call: Call, name: str) -> Response:
    """`GET /v1/models/{name}`; raises NotFound."""
    for model in _models(call):
        if model.id == name:
            return json_response(model)
    raise NotFound(f"Model {name[:100]!r} not found: see /v1/models.", param="model")


def get_usage(call: Call) -> Response:
    """`GET /v1/usage`: the tenant's use of its limits, its cost this month, paused pools."""
    return json_response(usage_object(call.services.usage.read(call.tenant)))


def usage_object(usage: TenantUsage) -> types.TenantUsage:
    """Return the usage of a tenant."""
    month = usage.month
    limits = {
        name: types.LimitUse(used=usage.used[name], limit=limit)
        for name, limit in asdict(usage.limits).items()
    }
    return types.TenantUsage(
        tenant=usage.tenant,
        requests_per_minute=limits["requests_per_minute"],
        active_batches=limits["active_batches"],
        unfinished_requests=limits["queued_lines"],
        running_requests=limits["running_lines"],
        enqueued_tokens=limits["enqueued_tokens"],
        tokens_per_day=limits["tokens_per_day"],
        spend_per_month=limits["spend_per_month"],
        month=types.MonthUse(
            since=types.unix(month.since),
            requests=month.requests,
            input_tokens=month.input_tokens,
            output_tokens=month.output_tokens,
            costs=[batches_api.cost_object(cost) for cost in month.costs],
        ),
        paused_pools=[
            types.PausedPool(
                fleet=pause.place.fleet,
                pool=pause.place.pool.value,
                since=types.unix(pause.since),
            )
            for pause in usage.paused
        ],
    )


def _models(call: Call) -> list[types.Model]:
    return [
        types.Model(
            id=model.name,
            created=int(model.since.timestamp()),
            x_lowtide=types.ModelState(fleet=model.fleet, workers=model.workers),
        )
        for model in call.services.models.known(call.tenant, call.services.fleets)
    ]


def heartbeat(app: App) -> Response:
    """`GET /v1/cell`: the quotes of this cell, for its front; raises NotFound, Unauthenticated."""
    token = app.settings.cells_token.get_secret_value()
    if app.settings.cell is None or not token:
        raise _no_cell()
    given = request.headers.get("Authorization", "")
    if not compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise Unauthenticated("Send the LOWTIDE_CELLS_TOKEN of this cell.")
    return json_response(app.services.quotes(app.settings.cell).report())


def _no_cell() -> NotFound:
    return NotFound("This installation is no cell.", code="unknown_url")


def tenant_of_caller(app: App) -> Response:
    """`GET /v1/cell/tenant`: the tenant of a key or a token, whatever its scopes, for a front.

    Raises NotFound, Unauthenticated or Unavailable.
    """
    if app.settings.cell is None:
        raise _no_cell()
    caller = app.callers.caller(request.headers.get("Authorization"), counts=False)
    return json_response({"tenant": app.services.usage.name(caller.tenant)})


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lowtide API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """window.ui = SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
});
"""
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"


@lru_cache(maxsize=1)
def _document() -> bytes:
    from lowtide.http.openapi import document as make

    return msgspec.json.encode(make(ALL))


def openapi_document(_: App) -> Response:
    """`GET /openapi.json`."""
    return Response(_document(), mimetype="application/json")


def docs_page(_: App) -> Response:
    """`GET /docs`."""
    return Response(_PAGE, headers={"Content-Security-Policy": _POLICY}, mimetype="text/html")


def docs_asset(_: App, name: str) -> Response:
    """`GET /docs/{name}`: the page's assets; raises NotFound."""
    if name == "start.js":
        return Response(_START, mimetype="text/javascript")
    spec = find_spec("flask_swagger_ui")
    if name not in _ASSETS or spec is None or spec.origin is None:
        raise NotFound("Page not found.", code="unknown_url")
    content = (Path(spec.origin).parent / "dist" / name).read_bytes()
    return Response(content, mimetype=_ASSETS[name], headers={"Cache-Control": "max-age=86400"})


_AFTER = Parameter("after", "The last id of the previous page.", {"type": "string"})
_ORDER = Parameter(
    "order", "Sort order by creation time.", {"enum": ["asc", "desc"], "default": "desc"}
)


def _limit(max_limit: int, default: int, description: str = "Max objects per page.") -> Parameter:
    schema = {"type": "integer", "minimum": 1, "maximum": max_limit, "default": default}
    return Parameter("limit", description, schema)


# At least two characters, the first and the last of which are not spaces.
_SEARCH_TEXT = r"^[^\s\u0000][^\u0000]*[^\s\u0000]$"
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/jsonl"},
        "purpose": {"const": "batch", "default": "batch"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
        # Before the file, which is encrypted as it arrives.
        "zero_retention": {"type": "boolean", "default": False},
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}
_RANGE = Parameter(
    "Range", "A single byte range, such as `bytes=0-99`.", {"type": "string"}, "header"
)
_PRESIGN = Parameter(
    "presign",
    "Return JSON with URLs of the object store that are valid for so many seconds: a "
    "`PresignedContent` object.",
    {"type": "integer", "minimum": 1, "maximum": MAX_SIGNED_SECONDS},
)

UPLOAD = (
    Route(
        "POST",
        "/v1/files",
        files_api.upload_file,
        Operation(
            "uploadFile",
            "Upload a batch file. Each line is validated during the upload.",
            types.File,
            form=_FORM,
            errors=(409, 413, 415),
        ),
        scope=Scope.FILES_WRITE,
    ),
    Route(
        "DELETE",
        "/v1/files/<file_id>",
        files_api.delete_file,
        Operation(
            "deleteFile",
            "Delete a file. Active batches that read it continue; its content is deleted when they end.",
            types.DeletedFile,
            errors=(404,),
        ),
        scope=Scope.FILES_WRITE,
    ),
    *uploads_api.ROUTES,
)

CREATE_BATCH = (
    Route(
        "POST",
        "/v1/batches",
        batches_api.create_batch,
        Operation(
            "createBatch",
            "Create a batch from an uploaded file.",
            types.Batch,
            body=types.CreateBatch,
            body_needs=("input_file_id", "inputFileId"),
            parameters=(IDEMPOTENCY_KEY,),
            errors=(404, 409, 413, 415, 422),
        ),
        scope=Scope.BATCHES_WRITE,
    ),
    *dead_letters_api.CHANGE,
    *reruns_api.CREATE,
)

CANCEL_BATCH = (
    Route(
        "POST",
        "/v1/batches/<batch_id>/cancel",
        batches_api.cancel_batch,
        Operation(
            "cancelBatch",
            "Cancel a batch. Finished results remain available.",
            types.Batch,
            errors=(404, 409),
        ),
        scope=Scope.BATCHES_WRITE,
    ),
)

READ = (
    Route(
        "GET",
        "/v1/files",
        files_api.list_files,
        Operation(
            "listFiles",
            "List files.",
            types.FilePage,
            parameters=(
                _AFTER,
                _limit(10_000, 10_000),
                _ORDER,
                Parameter(
                    "purpose",
                    "Only files with this purpose.",
                    {"type": "string", "pattern": r"^[^\u0000]*$"},
                ),
            ),
            errors=(404,),
        ),
        scope=Scope.FILES_READ,
    ),
    Route(
        "GET",
        "/v1/files/<file_id>",
        files_api.get_file,
        Operation("getFile", "Get a file's metadata.", types.File, errors=(404,)),
        scope=Scope.FILES_READ,
    ),
    Route(
        "GET",
        "/v1/files/<file_id>/content",
        files_api.file_content,
        Operation(
            "getFileContent",
            "Download a file or one byte range of it. The response may be a redirect to the object "
            "store.",
            None,
            media="application/jsonl",
            parameters=(_RANGE, _PRESIGN),
            errors=(404, 416),
            partial=True,
            presigned=types.PresignedContent,
        ),
        scope=Scope.FILES_READ,
    ),
    Route(
        "GET",
        "/v1/batches",
        batches_api.list_batches,
        Operation(
            "listBatches",
            "List batches, newest first.",
            types.BatchPage,
            parameters=(
                _AFTER,
                _limit(100, 20),
                Parameter(
                    "status",
                    "Only batches in this status.",
                    {"enum": [status.value for status in BatchStatus]},
                ),
                Parameter(
                    "user",
                    "Only batches whose user contains this text, in any case.",
                    {"type": "string"},
                ),
            ),
            errors=(404,),
        ),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/batches/<batch_id>",
        batches_api.get_batch,
        Operation("getBatch", "Get a batch.", types.Batch, errors=(404,)),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/batches/<batch_id>/explain",
        explain_api.explain_batch,
        Operation(
            "explainBatch",
            "Explain what a batch waits for or what limited it, when it ends, and what would speed it "
            "up.",
            types.Explanation,
            errors=(404,),
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/batches/<batch_id>/requests",
        batches_api.list_requests,
        Operation(
            "listRequests",
            "List the requests of a batch, in input order.",
            types.RequestPage,
            parameters=(
                Parameter(
                    "after",
                    "The last id or line number of the previous page.",
                    {
                        "type": "string",
                        "pattern": "^(batch_req_[0-9a-f]{32}0[0-9a-f]{7}|[0-9]{1,9})$",
                    },
                ),
                _limit(1000, 100),
                Parameter(
                    "status",
                    "Only requests in this state.",
                    {"enum": ["Queued", "Running", "Completed", "Failed", "Expired", "Cancelled"]},
                ),
                Parameter(
                    "dead_lettered",
                    "Only requests that are, or are not, dead letters.",
                    {"type": "boolean"},
                ),
                Parameter("pool", "Only requests of this pool.", {"enum": ["spot", "dedicated"]}),
            ),
            errors=(404,),
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/batches/<batch_id>/results",
        batches_api.list_results,
        Operation(
            "listResults",
            "Read results while the batch runs, in the order of their commits, as NDJSON in the "
            "format of the output file. A page of long results has fewer than `limit`. Once the output "
            "or the error file of the batch is deleted, the code is `answers_deleted`.",
            None,
            media="application/x-ndjson",
            parameters=(
                Parameter(
                    "after",
                    "The x-lowtide-cursor of the previous response.",
                    {"type": "string", "pattern": r"^[0-9]{1,19}\.[0-9]{1,9}$"},
                ),
                _limit(10_000, 1000),
            ),
            errors=(404,),
            headers={
                "x-lowtide-cursor": "Cursor for the next page.",
                "x-lowtide-complete": "`true` if there will be no further results.",
            },
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
    *dead_letters_api.READ,
    *reruns_api.READ,
    Route(
        "GET",
        "/v1/search",
        search_api.search,
        Operation(
            "search",
            "Find batches, files and requests by id, custom_id, user or metadata value, or the "
            "start of one. Exact matches come first.",
            types.SearchPage,
            parameters=(
                Parameter(
                    "q",
                    "The text to search for; ids with or without their prefix.",
                    {"type": "string", "maxLength": 512, "pattern": _SEARCH_TEXT},
                    required=True,
                ),
                _limit(20, 20, "Max matches of each kind."),
            ),
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/models",
        list_models,
        Operation("listModels", "List the available models.", types.ModelPage),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/models/<path:name>",
        get_model,
        Operation("getModel", "Get a model.", types.Model, errors=(404,)),
        scope=Scope.BATCHES_READ,
    ),
    Route(
        "GET",
        "/v1/usage",
        get_usage,
        Operation(
            "getUsage",
            "Get the tenant's use of its limits, its cost this month, and the paused pools.",
            types.TenantUsage,
            extension=True,
        ),
        scope=Scope.BATCHES_READ,
    ),
    Route("GET", HEARTBEAT_PATH, heartbeat, scope=None),
    Route("GET", TENANT_PATH, tenant_of_caller, scope=None),
    Route("GET", "/health/live", live, scope=None),
    Route("GET", "/health/ready", ready, scope=None),
    Route("GET", "/openapi.json", openapi_document, scope=None),
    Route("GET", "/docs", docs_page, scope=None),
    Route("GET", "/docs/<name>", docs_asset, scope=None),
)

ALL = (*UPLOAD, *CREATE_BATCH, *CANCEL_BATCH, *READ)


def application(app: App, routes: Sequence[Route]) -> Callable[[Request], Response]:
    """Return the handler for the requests of one function; raises ValueError for invalid settings.

    What it needs to know callers is read now: a mistake there stops the function at its start.
    """
    _ = app.callers
    return Application(app, routes, all_routes=ALL)
