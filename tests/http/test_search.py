"""`GET /v1/search`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.ids import parse_batch_id
from tests.http.forms import line, upload
from tests.search.test_search import split

if TYPE_CHECKING:
    from tests.http.conftest import Api
    from tests.worlds import World


def _submit(api: Api, world: World, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a file and a batch of one request."""
    file = upload(api, line(name))
    body = {"input_file_id": file["id"], "metadata": {"user": "ana", "run": f"run of {name}"}}
    batch = api("POST", "/v1/batches", json=body).json
    parsed = parse_batch_id(batch["id"])
    assert parsed is not None
    split(world, parsed, [name])
    return file, batch


def test_matches_name_their_field_and_their_batch(api: Api, world: World) -> None:
    file, batch = _submit(api, world, "doc-1")
    shown = {
        "id": batch["id"], "user": "ana", "status": "in_progress", "created_at": batch["created_at"],
    }  # fmt: skip
    page = api("GET", "/v1/search?q=doc-1").json
    (match,) = page["data"]
    assert (page["object"], page["more"]) == ("list", [])
    assert match == {
        "kind": "request",
        "id": f"batch_req_{batch['id'][6:]}00000001",
        "field": "custom_id",
        "value": "doc-1",
        "exact": True,
        "batch": shown,
        "filename": None,
        "custom_id": "doc-1",
        "line": 1,
        "object": "search.match",
    }
    (match,) = api("GET", "/v1/search?q=run+of").json["data"]
    assert (match["kind"], match["id"], match["field"], match["exact"], match["batch"]) == (
        "batch", batch["id"], "metadata.run", False, shown,
    )  # fmt: skip
    (match,) = api("GET", "/v1/search", query_string={"q": file["id"]}).json["data"]
    assert (match["kind"], match["filename"], match["batch"]) == ("file", "in.jsonl", shown)


def test_limit_is_one_of_each_kind(api: Api, world: World) -> None:
    for _ in range(2):
        _submit(api, world, "ana")
    page = api("GET", "/v1/search?q=ana&limit=1").json
    assert [match["kind"] for match in page["data"]] == ["batch", "request"]
    assert page["more"] == ["batch", "request"]


@pytest.mark.parametrize(
    ("query", "param"),
    [("", "q"), ("?q=", "q"), ("?q=a", "q"), ("?q=%20a%20", "q"), (f"?q={'a' * 513}", "q"),
     ("?q=a%00b", "q"), ("?q=ab&limit=21", "limit"), ("?q=ab&limit=0", "limit")],
)  # fmt: skip
def test_invalid_search_is_refused(api: Api, query: str, param: str) -> None:
    response = api("GET", f"/v1/search{query}")
    assert (response.status_code, response.json["error"]["param"]) == (400, param)
