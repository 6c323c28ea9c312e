"""Every route of the API, by the function that serves it."""

from __future__ import annotations

from lowtide.http import (
    batches,
    dead_letter_routes,
    documentation,
    files,
    requests,
    service,
    types,
)
from lowtide.http.operations import Operation, Parameter, Route

_AFTER = Parameter("after", "The last id of the page before.", {"type": "string"})
_ORDER = Parameter("order", "By creation.", {"enum": ["asc", "desc"], "default": "desc"})


def _limit(most: int, default: int) -> Parameter:
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter("limit", "Most objects of one page.", schema)


_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/jsonl"},
        "purpose": {"const": "batch", "default": "batch"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}
_RANGE = Parameter("Range", "One byte range, like `bytes=0-99`.", {"type": "string"}, "header")
_IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "A retry with the same key and body returns the batch of the first; another body is 422.",
    {"type": "string", "maxLength": 256},
    "header",
)

UPLOAD = (
    Route(
        "POST",
        "/v1/files",
        files.upload,
        Operation(
            "uploadFile",
            "Upload a batch file; it is checked line by line while it streams in.",
            types.File,
            form=_FORM,
            errors=(400, 413, 415),
        ),
    ),
    Route(
        "DELETE",
        "/v1/files/<file_id>",
        files.delete,
        Operation(
            "deleteFile",
            "Delete a file; a batch that reads it goes on, and its bytes go when that ends.",
            types.DeletedFile,
            errors=(404,),
        ),
    ),
)

CREATE_BATCH = (
    Route(
        "POST",
        "/v1/batches",
        batches.create,
        Operation(
            "createBatch",
            "Create a batch from an uploaded file.",
            types.Batch,
            body=types.CreateBatch,
            body_needs=("input_file_id", "inputFileId"),
            parameters=(_IDEMPOTENCY_KEY,),
            errors=(400, 404, 409, 413, 415, 422),
        ),
    ),
    *dead_letter_routes.CHANGE,
)

CANCEL_BATCH = (
    Route(
        "POST",
        "/v1/batches/<batch_id>/cancel",
        batches.cancel,
        Operation(
            "cancelBatch",
            "Cancel a batch; what is finished stays downloadable.",
            types.Batch,
            errors=(404, 409),
        ),
    ),
)

READ = (
    Route(
        "GET",
        "/v1/files",
        files.page,
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
            errors=(400, 404),
        ),
    ),
    Route(
        "GET",
        "/v1/files/<file_id>",
        files.get,
        Operation("getFile", "Get a file's record.", types.File, errors=(404,)),
    ),
    Route(
        "GET",
        "/v1/files/<file_id>/content",
        files.content,
        Operation(
            "getFileContent",
            "Download a file, whole or one byte range.",
            None,
            media="application/jsonl",
            parameters=(_RANGE,),
            errors=(404, 416),
            partial=True,
        ),
    ),
    Route(
        "GET",
        "/v1/batches",
        batches.page,
        Operation(
            "listBatches",
            "List batches, newest first.",
            types.BatchPage,
            parameters=(_AFTER, _limit(100, 20)),
            errors=(400, 404),
        ),
    ),
    Route(
        "GET",
        "/v1/batches/<batch_id>",
        batches.get,
        Operation("getBatch", "Get a batch as it stands.", types.Batch, errors=(404,)),
    ),
    Route(
        "GET",
        "/v1/batches/<batch_id>/requests",
        requests.page,
        Operation(
            "listRequests",
            "List a batch's lines, in input order.",
            types.RequestPage,
            parameters=(
                Parameter(
                    "after",
                    "The last id or line of the page before.",
                    {
                        "type": "string",
                        "pattern": "^(batch_req_[0-9a-f]{32}0[0-9a-f]{7}|[0-9]{1,9})$",
                    },
                ),
                _limit(1000, 100),
                Parameter(
                    "status",
                    "Only lines in this state.",
                    {"enum": ["Queued", "Running", "Completed", "Failed", "DeadLettered"]},
                ),
                Parameter("pool", "Only lines of this pool.", {"enum": ["spot", "dedicated"]}),
            ),
            errors=(400, 404),
            extension=True,
        ),
    ),
    Route(
        "GET",
        "/v1/batches/<batch_id>/results",
        requests.results,
        Operation(
            "listResults",
            "Read results while the batch runs, in the order they were committed, as NDJSON in the "
            "shape of the output file. There are fewer than `limit` where they are long.",
            None,
            media="application/x-ndjson",
            parameters=(
                Parameter(
                    "after",
                    "The x-lowtide-cursor of the answer before.",
                    {"type": "string", "pattern": r"^[0-9]{1,19}\.[0-9]{1,9}$"},
                ),
                _limit(10_000, 1000),
            ),
            errors=(400, 404),
            headers={
                "x-lowtide-cursor": "Where to go on.",
                "x-lowtide-complete": "`true` when there will be no more.",
            },
            extension=True,
        ),
    ),
    *dead_letter_routes.READ,
    Route(
        "GET",
        "/v1/models",
        service.models,
        Operation("listModels", "List the models that are served.", types.ModelPage),
    ),
    Route(
        "GET",
        "/v1/models/<path:name>",
        service.model,
        Operation("getModel", "Get one model.", types.Model, errors=(404,)),
    ),
    Route("GET", "/health/live", service.live, public=True),
    Route("GET", "/health/ready", service.ready, public=True),
    Route("GET", "/openapi.json", documentation.document, public=True),
    Route("GET", "/docs", documentation.page, public=True),
    Route("GET", "/docs/<name>", documentation.asset, public=True),
)

ALL = (*UPLOAD, *CREATE_BATCH, *CANCEL_BATCH, *READ)
