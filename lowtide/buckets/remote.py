"""The objects in registered buckets, with the credentials of the installation."""

from __future__ import annotations

import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from lowtide.buckets.model import DEFAULT_CREDENTIALS, BucketUrl, overlap, parse_folder_url
from lowtide.core.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unavailable
from lowtide.objects.store import AMAZON, AZURE, GOOGLE, open_cloud, remote_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lowtide.buckets.model import Bucket


_WINDOW: Final = 4 << 20
_PART: Final = 8 << 20
_PARTS_IN_FLIGHT: Final = 2
# The installation's own store may be named in more ways than a registered bucket.
_SCHEMES: Final = {
    **dict.fromkeys(AMAZON, "s3"),
    **dict.fromkeys(GOOGLE, "gs"),
    **dict.fromkeys(AZURE, "az"),
}


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object as it was first seen."""

    url: BucketUrl
    size: int
    e_tag: str | None


class RemoteBucket:
    """The objects of one bucket.

    Raises Forbidden, NotFound or Conflict (changed meanwhile), and Unavailable for what may pass;
    each message names the URL.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def head(self, url: BucketUrl) -> RemoteObject:
        """Return an object's size and version."""
        with _errors(url):
            meta = obstore.head(self._store, url.path)
        return RemoteObject(url, meta["size"], meta["e_tag"])

    def stream(self, source: RemoteObject) -> Iterator[bytes]:
        """Yield an object in pieces of up to 4 MiB, all of the version that was first seen."""
        for start in range(0, source.size, _WINDOW):
            end = min(start + _WINDOW, source.size)
            options: Any = {"range": (start, end), "if_match": source.e_tag}
            with _errors(source.url):
                data = bytes(obstore.get(self._store, source.url.path, options=options).bytes())
            if len(data) != end - start:
                raise Unavailable(f"{source.url} was read short: try again.")
            yield data

    def write(self, url: BucketUrl, pieces: Iterator[bytes]) -> None:
        """Write an object, a large one in parts; an exception of `pieces` leaves nothing behind."""
        head = bytearray()
        for piece in pieces:
            head += piece
            if len(head) >= _PART:
                break
        else:
            with _errors(url):
                obstore.put(self._store, url.path, bytes(head), use_multipart=False)
            return
        with (
            _errors(url),
            obstore.open_writer(
                self._store, url.path, buffer_size=_PART, max_concurrency=_PARTS_IN_FLIGHT
            ) as writer,
        ):
            writer.write(bytes(head))
            del head
            for piece in pieces:
                writer.write(piece)


class RemoteBuckets:
    """Opens registered buckets.

    The file of credentials is read at each use, so that rotated ones need no restart.
    """

    def __init__(self, credentials: Path | None, *, own_url: str) -> None:
        self._credentials = credentials
        self._own_url = own_url

    def open(self, bucket: Bucket) -> RemoteBucket:
        """Open a registered bucket; raises InvalidRequest if it is not set up."""
        require_foreign(bucket.url, self._own_url)
        options = self._options(bucket.credentials)
        try:
            return RemoteBucket(_open(bucket.url, options))
        except (BaseError, ValueError, TypeError, KeyError) as error:
            raise _not_set_up(bucket.credentials, "are not valid") from error

    def _options(self, name: str) -> Mapping[str, str] | None:
        """Return the options of a named set; None for the environment's."""
        sets: Mapping[str, Any] = {}
        if self._credentials is not None:
            try:
                sets = tomllib.loads(self._credentials.read_text())
            except (OSError, ValueError) as error:
                raise _not_set_up(name, "cannot be read") from error
        options = sets.get(name)
        if isinstance(options, dict):
            return {str(key): str(value) for key, value in options.items()}
        if name == DEFAULT_CREDENTIALS:
            return None
        raise _not_set_up(name, "are not configured")


def require_foreign(url: BucketUrl, own_url: str) -> None:
    """Raise InvalidRequest for a folder that overlaps the installation's own object store."""
    own = _own_folder(own_url)
    if own is not None and overlap(url, own):
        raise InvalidRequest(
            f"{url} overlaps the installation's own object store, which has the files of all tenants.",
            param="url",
            code="bucket_not_allowed",
        )


def _own_folder(own_url: str) -> BucketUrl | None:
    """Return the folder of the installation's object store; None if it is in no bucket.

    A path that no client may name is taken as the whole bucket.
    """
    parts = urlsplit(own_url)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None:
        return None
    # The URLs of Azure's file system are abfs://container@account/path.
    bucket = parts.netloc.partition("@")[0]
    try:
        return parse_folder_url(f"{scheme}://{bucket}{parts.path}", "url")
    except InvalidRequest:
        return BucketUrl(scheme, bucket, "")


def _open(url: BucketUrl, options: Mapping[str, str] | None) -> Any:
    """Open the store of a bucket.

    obstore adds the environment's settings to the given ones. Those are for the installation's own
    store: endpoint, keys and token of a named set are always explicit.
    """
    if options is None:
        return remote_store(url.root)
    config: dict[str, Any] = dict(options)
    more: dict[str, Any] = {}
    if url.scheme == "s3":
        region = config.setdefault("region", "us-east-1")
        config.setdefault("endpoint", f"https://s3.{region}.amazonaws.com")
        config.setdefault("virtual_hosted_style_request", "false")
        config.setdefault("skip_signature", "false")
        more["credential_provider"] = _fixed_keys(config)
    elif url.scheme == "az":
        config.setdefault("endpoint", f"https://{config['account_name']}.blob.core.windows.net")
    is_plaintext = str(config.get("endpoint", "")).startswith("http://")
    return open_cloud(url.root, is_plaintext=is_plaintext, config=config, **more)


def _fixed_keys(config: dict[str, Any]) -> Callable[[], Any]:
    keys = {
        "access_key_id": config.pop("access_key_id"),
        "secret_access_key": config.pop("secret_access_key"),
        "token": config.pop("session_token", None),
        "expires_at": None,
    }
    return lambda: keys


def _not_set_up(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"The bucket's credentials {name!r} {problem}: ask the operator.", code="bucket_not_set_up"
    )


@contextmanager
def _errors(url: BucketUrl) -> Iterator[None]:
    """Convert obstore's errors, whose text may have addresses and stays in the cause, for the log."""
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise NotFound(f"{url} does not exist.", code="bucket_not_found") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        text = f"Access to {url} was denied: check the policy of the bucket."
        raise Forbidden(text, code="bucket_access_denied") from error
    except PreconditionError as error:
        text = f"{url} was changed while it was read: create the batch again."
        raise Conflict(text, code="bucket_object_changed") from error
    except (BaseError, OSError) as error:
        raise Unavailable(f"{url} cannot be reached ({type(error).__name__}).") from error
