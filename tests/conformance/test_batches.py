"""`/v1/batches`: create, retrieve, and refused calls."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import openai
import pytest

from tests.conformance.features import Area, proves
from tests.conformance.lines import CHAT, ENDPOINTS, requests
from tests.conformance.shapes import TIMES, check_batch, check_error

if TYPE_CHECKING:
    import httpx

    from tests.conformance.server import Official, Server

UNKNOWN = "batch_" + "0" * 32
METADATA = {f"{number:02}" + "k" * 62: "v" * 512 for number in range(16)}


@pytest.fixture(scope="module")
def file_id(server: Server) -> str:
    """A valid input file of one line."""
    return str(server.upload(requests(1))["id"])


def _post(server: Server, file_id: str, **fields: Any) -> httpx.Response:
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields}
    return server.http.post("/v1/batches", json=body)


def _refusal(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return check_error(response.json())


@proves(Area.BATCHES, "`batches.create`")
def test_create_returns_batch(official: Official, file_id: str) -> None:
    answer = official(
        lambda client: client.batches.with_raw_response.create(
            input_file_id=file_id,
            endpoint=CHAT,
            completion_window="24h",
            metadata={"team": "harbour"},
        )
    )
    raw = answer.http_response.json()
    batch = check_batch(raw)
    assert answer.parse() == batch
    assert batch.status in {"validating", "in_progress", "finalizing", "completed"}
    assert (batch.input_file_id, batch.endpoint) == (file_id, CHAT)
    assert (batch.completion_window, batch.metadata) == ("24h", {"team": "harbour"})
    assert batch.expires_at == batch.created_at + 86_400
    assert (batch.errors, batch.error_file_id) == (None, None)


@proves(Area.BATCHES, "`batches.retrieve`")
def test_retrieve_returns_batch(official: Official, server: Server) -> None:
    ended = server.finish(server.create(requests(1)))
    answer = official(lambda client: client.batches.with_raw_response.retrieve(ended["id"]))
    assert answer.http_response.json() == ended
    assert answer.parse() == check_batch(ended)


@proves(Area.BATCHES, "An unknown id is 404, whatever it looks like")
@pytest.mark.parametrize("call", ["retrieve", "cancel"])
@pytest.mark.parametrize(
    "batch_id", [UNKNOWN, "batch_abc", "x" * 300], ids=["unknown", "malformed", "long"]
)
def test_unknown_batch_returns_404(official: Official, call: str, batch_id: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        official(lambda client: getattr(client.batches, call)(batch_id))
    assert refused.value.code == "not_found"


@proves(Area.BATCHES, "`metadata`: 16 pairs, keys of 64 and values of 512 characters")
@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(None, id="none"),
        pytest.param({}, id="empty"),
        pytest.param(METADATA, id="all-limits"),
        pytest.param({"水" * 64: "😀" * 512}, id="characters-not-bytes"),
        pytest.param({"": ""}, id="empty-strings"),
    ],
)
def test_metadata_is_returned(
    server: Server, file_id: str, metadata: dict[str, str] | None
) -> None:
    response = _post(server, file_id, metadata=metadata)
    assert response.status_code == 200, response.text
    assert response.json()["metadata"] == metadata
    assert server.batch(response.json()["id"])["metadata"] == metadata


@proves(Area.BATCHES, "`metadata`: 16 pairs, keys of 64 and values of 512 characters")
@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({**METADATA, "one": "more"}, id="17-pairs"),
        pytest.param({"k" * 65: "v"}, id="long-key"),
        pytest.param({"k": "v" * 513}, id="long-value"),
        pytest.param({"k": 1}, id="number"),
        pytest.param({"k": None}, id="null"),
        pytest.param({"k": {"nested": "v"}}, id="object"),
        pytest.param({"k": "\x00"}, id="nul"),
        pytest.param([], id="list"),
        pytest.param("text", id="text"),
    ],
)
def test_invalid_metadata_is_refused(server: Server, file_id: str, metadata: object) -> None:
    assert _refusal(_post(server, file_id, metadata=metadata))["param"] == "metadata"


@proves(Area.BATCHES, "`completion_window` of `24h`")
@pytest.mark.parametrize("window", ["5", "24", "24H", "0h", "-1h", "1.5h", "1w", "90s", "", " 24h"])
def test_invalid_window_is_refused(server: Server, file_id: str, window: str) -> None:
    error = _refusal(_post(server, file_id, completion_window=window or " "))
    assert (error["param"], error["code"]) == ("completion_window", "invalid_completion_window")


@proves(Area.BEYOND, "`completion_window` of any minutes, hours or days, from 1m to 7d")
@pytest.mark.parametrize(
    ("window", "seconds"),
    [("1m", 60), ("90m", 5400), ("1h", 3600), ("48h", 172_800), ("7d", 604_800)],
)
def test_window_sets_deadline(server: Server, file_id: str, window: str, seconds: int) -> None:
    response = _post(server, file_id, completion_window=window)
    assert response.status_code == 200, response.text
    batch = response.json()
    assert batch["completion_window"] == window
    assert batch["expires_at"] == batch["created_at"] + seconds
    assert batch["x_lowtide"]["deadline"] == batch["expires_at"]


@proves(Area.BEYOND, "`completion_window` of any minutes, hours or days, from 1m to 7d")
@pytest.mark.parametrize("window", ["8d", "169h", "10081m", "99999d"])
def test_window_out_of_bounds_is_refused(server: Server, file_id: str, window: str) -> None:
    error = _refusal(_post(server, file_id, completion_window=window))
    assert (error["param"], error["code"]) == ("completion_window", "invalid_completion_window")
    assert "1m to 7d" in error["message"]


@proves(Area.BATCHES, "The endpoints for images and videos", supported=False)
@pytest.mark.parametrize(
    "endpoint", ["/v1/images/generations", "/v1/images/edits", "/v1/videos", "/v1/nothing", ""]
)
def test_other_endpoints_are_refused(server: Server, file_id: str, endpoint: str) -> None:
    error = _refusal(_post(server, file_id, endpoint=endpoint))
    assert (error["param"], error["code"]) == ("endpoint", "invalid_endpoint")
    assert all(each in error["message"] for each in ENDPOINTS)


@proves(Area.BATCHES, "`output_expires_after`, from an hour to 30 days")
@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_output_expiry_is_accepted(server: Server, file_id: str, seconds: int) -> None:
    expiry = {"anchor": "created_at", "seconds": seconds}
    assert _post(server, file_id, output_expires_after=expiry).status_code == 200


@proves(Area.BATCHES, "`output_expires_after`, from an hour to 30 days")
@pytest.mark.parametrize(
    "expiry",
    [
        pytest.param({"anchor": "created_at", "seconds": 3599}, id="too-soon"),
        pytest.param({"anchor": "created_at", "seconds": 2_592_001}, id="too-late"),
        pytest.param({"anchor": "now", "seconds": 3600}, id="other-anchor"),
        pytest.param({"anchor": "created_at", "seconds": "3600"}, id="text"),
        pytest.param({"seconds": 3600}, id="no-anchor"),
        pytest.param({"anchor": "created_at"}, id="no-seconds"),
        pytest.param(3600, id="number"),
    ],
)
def test_invalid_output_expiry_is_refused(server: Server, file_id: str, expiry: object) -> None:
    error = _refusal(_post(server, file_id, output_expires_after=expiry))
    assert error["param"] == "output_expires_after"


@proves(Area.BATCHES, "`input_file_id` must be an uploaded file")
@pytest.mark.parametrize("with_endpoint", [True, False], ids=["with-endpoint", "without-endpoint"])
@pytest.mark.parametrize(
    ("input_file_id", "status"),
    [
        pytest.param("file-" + "0" * 32, 404, id="unknown"),
        pytest.param("abc", 400, id="not-an-id"),
        pytest.param(None, 400, id="missing"),
        pytest.param("", 400, id="empty"),
        pytest.param(7, 400, id="number"),
    ],
)
def test_invalid_input_file_is_refused(
    server: Server, input_file_id: object, status: int, *, with_endpoint: bool
) -> None:
    body = {"input_file_id": input_file_id, "completion_window": "24h"} | (
        {"endpoint": CHAT} if with_endpoint else {}
    )
    error = _refusal(server.http.post("/v1/batches", json=body), status)
    assert error["param"] == "input_file_id"


@proves(Area.BATCHES, "`input_file_id` must be an uploaded file")
def test_output_file_is_refused_as_input(server: Server) -> None:
    ended = server.finish(server.create(requests(1)))
    error = _refusal(_post(server, ended["output_file_id"]), 404)
    assert error["param"] == "input_file_id"


@proves(Area.BATCHES, "A body that is no JSON object is refused")
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        pytest.param(b"", 400, None, id="empty"),
        pytest.param(b"{", 400, None, id="cut-off"),
        pytest.param(b"[]", 400, None, id="list"),
        pytest.param(b"null", 400, None, id="null"),
        pytest.param(b'{"input_file_id": NaN}', 400, None, id="nan"),
        pytest.param(b'{"endpoint": "\xff"}', 400, None, id="invalid-utf8"),
        pytest.param(b'{"metadata": {"a": "\\ud800"}}', 400, None, id="lone-surrogate"),
        pytest.param(b"[" * 100_000, 400, None, id="nested"),
        pytest.param(b" " * (1 << 20) + b"{}", 413, "payload_too_large", id="over-1-MiB"),
    ],
)
def test_invalid_body_is_refused(
    server: Server, content: bytes, status: int, code: str | None
) -> None:
    headers = {"Content-Type": "application/json"}
    response = server.http.post("/v1/batches", content=content, headers=headers)
    assert _refusal(response, status)["code"] == code


@proves(Area.BATCHES, "A body that is no JSON object is refused")
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_other_content_type_is_refused(server: Server, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = server.http.post("/v1/batches", content=b"{}", headers=headers)
    assert _refusal(response, 415)["code"] == "unsupported_media_type"


@proves(Area.BEYOND, "`Idempotency-Key`: a retry returns the batch of the first call")
def test_idempotency_key_returns_first_batch(official: Official, file_id: str) -> None:
    def create(key: str) -> str:
        created = official(
            lambda client: client.batches.create(
                input_file_id=file_id,
                endpoint=CHAT,
                completion_window="24h",
                extra_headers={"Idempotency-Key": key},
            )
        )
        return str(created.id)

    one, other = str(uuid4()), str(uuid4())
    first = create(one)
    assert create(one) == first
    assert create(other) != first


@proves(Area.BEYOND, "`Idempotency-Key`: a retry returns the batch of the first call")
def test_concurrent_idempotent_calls_create_one_batch(server: Server, file_id: str) -> None:
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    headers = {"Idempotency-Key": str(uuid4())}

    def create(_: int) -> str:
        return str(server.http.post("/v1/batches", json=body, headers=headers).json()["id"])

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(create, range(6)))) == 1


@proves(Area.BEYOND, "`Idempotency-Key` with another body is 422")
def test_idempotency_key_with_other_body_is_refused(official: Official, file_id: str) -> None:
    key = {"Idempotency-Key": str(uuid4())}

    def create(window: str) -> Any:
        return official(
            lambda client: client.batches.create(
                input_file_id=file_id, endpoint=CHAT, completion_window=window, extra_headers=key
            )
        )

    first = create("24h")
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        create("1h")
    assert (refused.value.code, refused.value.param) == (
        "idempotency_key_reused",
        "Idempotency-Key",
    )
    assert create("24h").id == first.id


@proves(Area.BEYOND, "`Idempotency-Key`: a retry returns the batch of the first call")
def test_long_idempotency_key_is_refused(server: Server, file_id: str) -> None:
    response = server.http.post(
        "/v1/batches", json={"input_file_id": file_id}, headers={"Idempotency-Key": "k" * 257}
    )
    assert _refusal(response)["param"] == "Idempotency-Key"


@proves(Area.BEYOND, "The original's body: `inputFileId` and `userId`, and nothing else")
def test_body_of_original_is_accepted(server: Server, file_id: str) -> None:
    response = server.http.post("/v1/batches", json={"inputFileId": file_id, "userId": "anna"})
    assert response.status_code == 200, response.text
    batch = response.json()
    check_batch(batch)
    assert (batch["input_file_id"], batch["endpoint"]) == (file_id, CHAT)
    assert (batch["completion_window"], batch["metadata"]) == ("24h", None)
    assert batch["x_lowtide"]["user"] == "anna"


@proves(Area.BEYOND, "`endpoint` is the first line's where none is named")
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint_defaults_to_that_of_first_line(server: Server, endpoint: str) -> None:
    uploaded = server.upload(requests(1, endpoint=endpoint))
    response = server.http.post("/v1/batches", json={"input_file_id": uploaded["id"]})
    assert (response.status_code, response.json()["endpoint"]) == (200, endpoint)


@proves(Area.BATCHES, "Timestamps are Unix seconds")
def test_timestamps_are_unix_seconds(server: Server) -> None:
    ended = server.finish(server.create(requests(1)))
    assert all(ended[name] is None or isinstance(ended[name], int) for name in TIMES)
