"""Registered buckets, and the URLs that they cover.

Only a URL in plain form is accepted, so that comparing text is exact: what is compared is what the
store is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


class Access(StrEnum):
    """The use of a bucket: to read inputs or to write results."""

    READ = "read"
    WRITE = "write"


DEFAULT_CREDENTIALS: Final = "default"
"""The credentials in the environment, unless the installation has a set of this name."""
MAX_URL: Final = 960
"""The longest URL; results add their names, and a key has at most 1,024 characters."""
_BUCKET: Final = r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){1,220}[a-z0-9]"
# Without % and \, and without the characters that stores or their client encode.
_SEGMENT: Final = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9!$&'()+,.:;=@_-]+"
_URL: Final = re.compile(rf"(s3|gs|az)://({_BUCKET})(?:/((?:{_SEGMENT}/)*(?:{_SEGMENT})?))?")


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """The URL of an object, or of a folder if its path is empty or ends in a slash."""

    scheme: str
    bucket: str
    path: str

    def __str__(self) -> str:
        return f"{self.root}/{self.path}"

    @property
    def root(self) -> str:
        """The URL of the whole bucket, without a slash at its end."""
        return f"{self.scheme}://{self.bucket}"

    @property
    def is_folder(self) -> bool:
        """True for the bucket or a folder in it."""
        return not self.path or self.path.endswith("/")

    @property
    def name(self) -> str:
        """The last part of an object's path."""
        return self.path.rsplit("/", 1)[-1]

    def as_folder(self) -> BucketUrl:
        """Return the URL with a slash at its end."""
        return self if self.is_folder else BucketUrl(self.scheme, self.bucket, f"{self.path}/")

    def joined(self, name: str) -> BucketUrl:
        """Return the URL of an object in a folder."""
        return BucketUrl(self.scheme, self.bucket, self.path + name)

    def covers(self, other: BucketUrl) -> bool:
        """Return whether a folder contains another URL, or is the same."""
        return self.is_folder and self.root == other.root and other.path.startswith(self.path)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A folder that a tenant's batches may use; `credentials` names a set of the installation."""

    url: BucketUrl
    may_read: bool
    may_write: bool
    credentials: str
    created_at: datetime
    created_by: str

    def allows(self, access: Access) -> bool:
        """Return whether batches may use the folder so."""
        return self.may_read if access is Access.READ else self.may_write


def parse_bucket_url(text: str, param: str) -> BucketUrl:
    """Parse the URL of a bucket, or of a folder or object in it; raises InvalidRequest."""
    match = _URL.fullmatch(text) if len(text) <= MAX_URL else None
    if match is None:
        raise InvalidRequest(
            f"{param} {text[:200]!r} must be an s3://, gs:// or az:// URL of at most {MAX_URL} "
            "characters, such as s3://bucket/folder/in.jsonl: no empty parts, '.' or '..', no "
            "query, user or port, and only letters, digits and !$&'()+,-.:;=@_ in its path.",
            param=param,
            code="invalid_bucket_url",
        )
    return BucketUrl(match[1], match[2], match[3] or "")


def parse_object_url(text: str, param: str) -> BucketUrl:
    """Parse the URL of an object; raises InvalidRequest."""
    url = parse_bucket_url(text, param)
    if url.is_folder:
        raise InvalidRequest(
            f"{param} {text!r} is a folder: name the object.",
            param=param,
            code="invalid_bucket_url",
        )
    return url


def parse_folder_url(text: str, param: str) -> BucketUrl:
    """Parse the URL of a folder, with or without a slash at its end; raises InvalidRequest."""
    return parse_bucket_url(text, param).as_folder()


def covering(buckets: Iterable[Bucket], url: BucketUrl) -> Bucket | None:
    """Return the bucket with the longest URL that covers `url`."""
    matches = [bucket for bucket in buckets if bucket.url.covers(url)]
    return max(matches, key=lambda bucket: len(bucket.url.path), default=None)


def require_access(buckets: Iterable[Bucket], url: BucketUrl, access: Access, param: str) -> Bucket:
    """Return the bucket that covers `url`; raises InvalidRequest if it does not allow `access`.

    The longest registered URL decides, so that a folder can have fewer rights than the one around it.
    """
    bucket = covering(buckets, url)
    if bucket is None or not bucket.allows(access):
        verb = "read" if access is Access.READ else "written"
        raise InvalidRequest(
            f"{param} {str(url)!r} is not in a bucket that your batches may {access}: only "
            f"registered buckets are {verb}. Ask the operator to register it.",
            param=param,
            code="bucket_not_registered",
        )
    return bucket


def overlap(first: BucketUrl, second: BucketUrl) -> bool:
    """Return whether one folder contains the other."""
    return first.covers(second) or second.covers(first)
