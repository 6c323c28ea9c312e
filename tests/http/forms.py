"""Raw multipart forms and input lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.http.conftest import Api

BOUNDARY = "----x"


def line(custom_id: str = "a", url: str = "/v1/embeddings", **body: object) -> bytes:
    """Return a valid input line."""
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": url,
        "body": {"model": "m", **body},
    }
    return json.dumps(request).encode() + b"\n"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    """Return one part of a form."""
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    return (
        b"--" + BOUNDARY.encode() + b"\r\n" + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"
    )


def form(*parts: bytes) -> bytes:
    """Return a complete form."""
    return b"".join(parts) + b"--" + BOUNDARY.encode() + b"--\r\n"


CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def post(api: Api, body: bytes, content_type: str = CONTENT_TYPE, path: str = "/v1/files") -> Any:
    """Post the bytes of a form unchanged."""
    return api("POST", path, data=body, content_type=content_type)


def upload(api: Api, content: bytes | None = None, filename: str = "in.jsonl") -> dict[str, Any]:
    """Upload a file and return its File object."""
    content = line() if content is None else content
    response = post(api, form(part("purpose", b"batch"), part("file", content, filename)))
    assert response.status_code == 200, response.text
    file: dict[str, Any] = response.json
    return file
