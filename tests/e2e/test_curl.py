"""The curl commands of the original product."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.command import clean_environment
from tests.e2e.questions import chat_file, simulated_answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.stacks import LocalStack

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(*arguments: str) -> tuple[int, Any]:
    """Run curl and return the status and the JSON body."""
    done = subprocess.run(
        [shutil.which("curl") or "curl", "-sS", "-w", "\n%{http_code}", *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    text, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(text)


def upload(stack: LocalStack, folder: Path, source: bytes, *key: str) -> tuple[int, Any]:
    """Run `curl -X POST -F "file=@x.jsonl" URL/v1/files`."""
    path = folder / "x.jsonl"
    path.write_bytes(source)
    return curl("-X", "POST", "-F", f"file=@{path}", f"{stack.base_url}/v1/files", *key)


def create(stack: LocalStack, file: str, *key: str) -> tuple[int, Any]:
    """Create a batch with the original product's body."""
    body = json.dumps({"inputFileId": file, "userId": "my-user"})
    content_type = ("-H", "Content-Type: application/json")
    return curl("-X", "POST", f"{stack.base_url}/v1/batches", *content_type, "-d", body, *key)


def test_batch_completes_with_api_key(stack: LocalStack, tmp_path: Path) -> None:
    source = chat_file(20)
    key = ("-H", f"Authorization: Bearer {stack.api_key}")
    status, file = upload(stack, tmp_path, source, *key)
    assert (status, file["object"], file["purpose"]) == (200, "file", "batch")
    assert (file["filename"], file["bytes"]) == ("x.jsonl", len(source))
    status, batch = create(stack, file["id"], *key)
    assert (status, batch["object"], batch["endpoint"]) == (200, "batch", "/v1/chat/completions")
    assert (batch["completion_window"], batch["x_lowtide"]["user"]) == ("24h", "my-user")
    stack.finish(batch["id"], source, answers=simulated_answer)
    status, final = curl(f"{stack.base_url}/v1/batches/{batch['id']}", *key)
    assert (status, final["status"]) == (200, "completed")


def test_missing_or_wrong_key_gets_401(stack: LocalStack, tmp_path: Path) -> None:
    for status, answer in (
        upload(stack, tmp_path, chat_file(1)),
        create(stack, "file-0"),
        curl(f"{stack.base_url}/v1/batches/batch_0"),
        curl(f"{stack.base_url}/v1/batches", "-H", "Authorization: Bearer lt_wrong"),
    ):
        assert status == 401
        assert answer["error"]["type"] == "authentication_error"
        assert answer["error"]["code"] == "invalid_api_key"


def test_anonymous_tenant_needs_no_key(anonymous_stack: LocalStack, tmp_path: Path) -> None:
    status, file = upload(anonymous_stack, tmp_path, chat_file(20))
    assert status == 200
    status, batch = create(anonymous_stack, file["id"])
    assert status == 200
    status, same = curl(f"{anonymous_stack.base_url}/v1/batches/{batch['id']}")
    assert (status, same["id"]) == (200, batch["id"])
    anonymous_stack.client.batches.cancel(batch["id"])
    anonymous_stack.follow(batch["id"])
