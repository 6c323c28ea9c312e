"""A whole stack on a bucket: the file and its results never pass the functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conformance.lines import requests
from tests.e2e.stacks import running
from tests.e2e.waiting import until
from tests.objects.conftest import s3_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.stacks import LocalStack

__all__ = ["s3_endpoint"]

CONTENT = requests(200)


@pytest.fixture(scope="module")
def bucket_stack(s3_endpoint: str) -> Iterator[LocalStack]:
    """A stack with a bucket, which redirects downloads there."""
    settings = {
        "LOWTIDE_OBJECT_STORE_URL": "s3://bucket/e2e",
        "LOWTIDE_OBJECT_STORE_PUBLIC_URL": s3_endpoint.replace("127.0.0.1", "localhost"),
        "LOWTIDE_PRESIGNED_DOWNLOADS": "true",
        "LOWTIDE_SIMULATED_LATENCY": "0.01",
        "AWS_ENDPOINT": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }
    with running(settings) as stack:
        yield stack


def test_batch_of_a_presigned_file_runs_and_its_output_comes_from_the_store(
    bucket_stack: LocalStack, s3_endpoint: str
) -> None:
    client = bucket_stack.client
    created: Any = client.uploads.create(
        bytes=len(CONTENT),
        filename="in.jsonl",
        mime_type="application/jsonl",
        purpose="batch",
        extra_body={"transfer": "presigned"},
    )
    (part,) = created.x_lowtide["parts"]
    httpx.put(part["url"], content=CONTENT, headers=part["headers"]).raise_for_status()
    file = client.uploads.complete(created.id, part_ids=[part["id"]]).file
    assert file is not None
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    def output() -> str | None:
        return client.batches.retrieve(batch.id).output_file_id

    name = until(output, "the batch has its output", within=60)
    response = client.files.with_raw_response.content(str(name))
    assert len(response.content.splitlines()) == 200
    assert response.http_response.url.host == "localhost"
    assert response.http_response.url.port == httpx.URL(s3_endpoint).port
    assert "X-Amz-Signature" not in bucket_stack.log()
