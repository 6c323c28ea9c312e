"""Presigned URLs: clients exchange bytes with the object store, past our processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import obstore

from lowtide.core.errors import InvalidRequest
from lowtide.objects.store import AZURE, CLOUDS, remote_store, store_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


MAX_SIGNED_SECONDS: Final = 7 * 24 * 3600
"""The longest validity of a URL: that of Signature Version 4."""
_COPIES_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class SignedPiece:
    """A URL that returns `size` bytes of a file."""

    url: str
    size: int


class Presigner:
    """The signer of URLs for objects in the cloud bucket at `url`.

    A URL grants one method on one object until it expires. Clients reach the bucket at
    `public_url`, its endpoint, where that differs from the one that this process uses: signatures
    cover the host.
    """

    def __init__(self, url: str, public_url: str | None = None) -> None:
        self._url = url
        self._public_url = public_url

    @property
    def upload_headers(self) -> Mapping[str, str]:
        """The headers that a PUT needs."""
        return {"x-ms-blob-type": "BlockBlob"} if self._scheme in AZURE else {}

    def check(self, param: str) -> None:
        """Raise InvalidRequest for `param` if the object store cannot sign URLs."""
        if self._scheme not in CLOUDS:
            raise InvalidRequest(
                f"This server's object store is {self._scheme}://, which has no presigned URLs: send "
                "the bytes to the API, without this parameter. Presigned URLs need a bucket of S3, "
                "Google Cloud Storage or Azure.",
                param=param,
            )

    def sign(
        self, method: Literal["GET", "PUT"], keys: Sequence[str], seconds: float
    ) -> Sequence[str]:
        """Return URLs for one method on each object, valid for `seconds`.

        With temporary credentials, URLs expire with those at the latest. Raises Unavailable.
        """
        with store_errors():
            urls: Sequence[str] = obstore.sign(
                self._signing, method, list(keys), timedelta(seconds=seconds)
            )
        return urls

    def sizes(self, prefix: str) -> Mapping[str, int]:
        """Return the sizes of all objects below `prefix`, by the rest of their keys."""
        with store_errors():
            pages = list(obstore.list(self._store, prefix))
        start = len(prefix) + 1
        return {entry["path"][start:]: entry["size"] for page in pages for entry in page}

    def copy(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Copy objects inside the store, (from, to); raises NotFound or Unavailable."""
        with ThreadPoolExecutor(min(_COPIES_AT_ONCE, len(pairs))) as pool:
            list(pool.map(self._copy, pairs))

    def _copy(self, pair: tuple[str, str]) -> None:
        source, target = pair
        with store_errors(source):
            obstore.copy(self._store, source, target)

    @property
    def _scheme(self) -> str:
        return urlsplit(self._url).scheme

    @cached_property
    def _store(self) -> Any:
        return remote_store(self._url)

    @cached_property
    def _signing(self) -> Any:
        if self._public_url is None:
            return self._store
        return remote_store(self._url, self._public_url)
