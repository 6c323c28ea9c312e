"""Empty query parameters and trailing slashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.http.forms import form, line, part, post, upload

if TYPE_CHECKING:
    from tests.http.conftest import Api


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/files", ["after", "limit", "order", "purpose"]),
        ("/v1/batches", ["after", "limit", "status", "user"]),
        ("/v1/batches/{batch}/requests", ["after", "limit", "status", "pool"]),
        ("/v1/batches/{batch}/results", ["after", "limit"]),
        ("/v1/batches/{batch}/failed_inputs", ["outcome"]),
        ("/v1/dead_letters", ["after", "limit", "batch_id", "error_code", "state"]),
        ("/v1/dead_letters/content", ["which", "batch_id", "error_code", "state"]),
    ],
)
def test_empty_parameter_is_ignored(api: Api, path: str, names: list[str]) -> None:
    file = upload(api)
    created = api("POST", "/v1/batches", json={"input_file_id": file["id"]})
    path = path.format(batch=created.json["id"])
    plain = api("GET", path)
    assert plain.status_code == 200
    for query in [*(f"{name}=" for name in names), "&".join(f"{name}=" for name in names)]:
        response = api("GET", f"{path}?{query}")
        assert (response.status_code, response.data) == (200, plain.data), query


def test_trailing_slash_is_ignored(api: Api) -> None:
    file = post(api, form(part("file", line(), "a")), path="/v1/files/").json
    created = api("POST", "/v1/batches/", json={"input_file_id": file["id"]})
    assert created.status_code == 200
    for path in ("/v1/files", "/v1/batches", f"/v1/batches/{created.json['id']}"):
        assert api("GET", path + "/").data == api("GET", path).data
    cancelled = api("POST", f"/v1/batches/{created.json['id']}/cancel/")
    assert (cancelled.status_code, cancelled.json["status"]) == (200, "cancelling")
