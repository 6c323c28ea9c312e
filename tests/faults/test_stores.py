"""Uploads to an object store without TLS, and to a missing bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import API_KEY
from tests.faults.servers import serving
from tests.http.forms import CONTENT_TYPE, form, line, part
from tests.objects.conftest import s3_endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Database

__all__ = ["s3_endpoint"]


@pytest.mark.parametrize(
    ("bucket", "status", "logged"),
    [
        pytest.param("bucket", 200, "", id="bucket exists"),
        pytest.param("nowhere", 503, "PUT http://", id="no such bucket"),
    ],
)
def test_upload_to_store_without_tls_succeeds_or_logs_why(
    shared_database: Database,
    s3_endpoint: str,
    tmp_path: Path,
    bucket: str,
    status: int,
    logged: str,
) -> None:
    settings = {
        "LOWTIDE_DATABASE_URL": shared_database.url("api"),
        "LOWTIDE_OBJECT_STORE_URL": f"s3://{bucket}/lowtide",
        "AWS_ENDPOINT": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }
    with serving("upload", tmp_path / "objects", settings) as server:
        answer = httpx.post(
            f"{server.url}/v1/files",
            content=form(part("purpose", b"batch"), part("file", line(), "a.jsonl")),
            headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": CONTENT_TYPE},
            timeout=120,
            trust_env=False,
        )
        assert answer.status_code == status, answer.text
        assert logged in server.stderr.read_text()
        assert ("request.unavailable" in server.stderr.read_text()) == bool(logged)
