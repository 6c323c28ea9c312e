"""Batches, dead letters and usage as in the API: a tenant's over HTTP, others as operator."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import httpx

from lowtide.cli.output import fail
from lowtide.cli.stack import api_errors, connect, operating

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from openai import OpenAI


_TIMEOUT = 600.0

Json = dict[str, Any]


class Access(Protocol):
    """Lists, files and actions; objects and pages have the fields of the API's.

    For an operator each object also has a `tenant`. Files come in pieces.
    """

    tenants: bool
    """True if objects may be those of several tenants."""

    def batches(self, query: Mapping[str, str]) -> Json:
        """Return a page of batches; `query` has the parameters of `GET /v1/batches`."""
        ...

    def batch(self, batch_id: str) -> Json:
        """Return a batch."""
        ...

    def batch_file(self, batch: Json, role: str) -> Iterator[bytes]:
        """Return the content of the batch's `input`, `output` or `error` file, which it has."""
        ...

    def failed_inputs(self, batch: Json, outcomes: Sequence[str]) -> Iterator[bytes]:
        """Return the input lines of failed requests, as `GET /v1/batches/{id}/failed_inputs`."""
        ...

    def explain(self, batch_id: str) -> Json:
        """Return the explanation of a batch, as `GET /v1/batches/{id}/explain`."""
        ...

    def cancel(self, batch_id: str) -> Json:
        """Cancel a batch, and return it."""
        ...

    def rerun(self, body: Json) -> Json:
        """Run failed requests again; `body` is that of `POST /v1/reruns`."""
        ...

    def letters(self, query: Mapping[str, str]) -> Json:
        """Return a page of dead letters; `query` has the parameters of `GET /v1/dead_letters`."""
        ...

    def letter_summary(self, query: Mapping[str, str]) -> Json:
        """Return the counts of dead letters by error, as `GET /v1/dead_letters/summary`."""
        ...

    def letter(self, letter_id: str) -> Json:
        """Return a dead letter with its input and its last response."""
        ...

    def letter_content(self, query: Mapping[str, str]) -> Iterator[bytes]:
        """Return one tenant's inputs or responses, as `GET /v1/dead_letters/content`."""
        ...

    def end_letters(self, action: str, body: Json) -> Json:
        """Requeue or discard dead letters; `body` is that of `POST /v1/dead_letters/{action}`."""
        ...

    def find(self, text: str) -> Json:
        """Return what a search finds, as `GET /v1/search`."""
        ...

    def usage(self) -> Json:
        """Return the usage of one tenant, as `GET /v1/usage`."""
        ...


class ApiAccess:
    """Access of an API key to its tenant."""

    tenants = False

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def batches(self, query: Mapping[str, str]) -> Json:
        """Return a page of batches."""
        return self._get("/batches", query)

    def batch(self, batch_id: str) -> Json:
        """Return a batch."""
        return self._client.batches.retrieve(batch_id).to_dict()

    def batch_file(self, batch: Json, role: str) -> Iterator[bytes]:
        """Return the content of the batch's file."""
        return self._stream(f"files/{batch[f'{role}_file_id']}/content", {})

    def failed_inputs(self, batch: Json, outcomes: Sequence[str]) -> Iterator[bytes]:
        """Return the input lines of failed requests."""
        query = {"outcome": list(outcomes)}
        return self._stream(f"batches/{batch['id']}/failed_inputs", query)

    def explain(self, batch_id: str) -> Json:
        """Return the explanation of a batch."""
        return self._get(f"/batches/{quote(batch_id, safe='')}/explain", {})

    def cancel(self, batch_id: str) -> Json:
        """Cancel a batch, and return it."""
        return self._client.batches.cancel(batch_id).to_dict()

    def rerun(self, body: Json) -> Json:
        """Run failed requests again."""
        return self._post("/reruns", body)

    def letters(self, query: Mapping[str, str]) -> Json:
        """Return a page of dead letters."""
        return self._get("/dead_letters", query)

    def letter_summary(self, query: Mapping[str, str]) -> Json:
        """Return the counts of dead letters by error."""
        return self._get("/dead_letters/summary", query)

    def letter(self, letter_id: str) -> Json:
        """Return a dead letter with its input and its last response."""
        return self._get(f"/dead_letters/{quote(letter_id, safe='')}", {})

    def letter_content(self, query: Mapping[str, str]) -> Iterator[bytes]:
        """Return the inputs or last responses of dead letters."""
        return self._stream("dead_letters/content", query)

    def end_letters(self, action: str, body: Json) -> Json:
        """Requeue or discard dead letters."""
        return self._post(f"/dead_letters/{action}", body)

    def find(self, text: str) -> Json:
        """Return what a search finds."""
        return self._get("/search", {"q": text})

    def usage(self) -> Json:
        """Return the usage of the tenant."""
        return self._get("/usage", {})

    def _get(self, path: str, query: Mapping[str, str]) -> Json:
        options: Any = {"params": query}
        answer: Json = self._client.get(path, cast_to=httpx.Response, options=options).json()
        return answer

    def _stream(self, path: str, query: Mapping[str, str | list[str]]) -> Iterator[bytes]:
        from lowtide.cli.client import stream

        return stream(self._client, path, query)

    def _post(self, path: str, body: Json) -> Json:
        # The key makes a retry by the client return the result of the first attempt.
        headers = {"Idempotency-Key": f"cli-{uuid.uuid4()}"}
        options: Any = {"headers": headers, "timeout": _TIMEOUT}
        answer: Json = self._client.post(
            path, cast_to=httpx.Response, body=body, options=options
        ).json()
        return answer


@contextmanager
def access(
    url: str | None,
    key: str | None,
    data_dir: Path | None,
    tenant: str | None,
    *,
    all_tenants: bool,
) -> Iterator[Access]:
    """Open the API, or with a tenant or all of them the database; errors end the command."""
    if tenant is not None and all_tenants:
        fail("Use either --tenant or --all-tenants.")
    if tenant is None and not all_tenants:
        with api_errors():
            yield ApiAccess(connect(url, key, data_dir))
        return
    from lowtide.cli.operator_access import OperatorAccess

    with operating(data_dir) as operator:
        yield OperatorAccess(operator.app, operator.actor, tenant)
