"""URLs of buckets: their plain form, and the registered bucket that covers one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lowtide.buckets.model import (
    MAX_URL,
    Access,
    Bucket,
    covering,
    overlap,
    parse_bucket_url,
    parse_folder_url,
    parse_object_url,
    require_access,
)
from lowtide.core.errors import InvalidRequest


def _bucket(url: str, *, may_read: bool = True, may_write: bool = False) -> Bucket:
    folder = parse_folder_url(url, "url")
    return Bucket(folder, may_read, may_write, "acme", datetime.now(UTC), "op")


@pytest.mark.parametrize(
    "url",
    [
        "s3://acme-prompts/in/a.jsonl",
        "gs://acme_prompts.eu/in/date=2026-11-27/part-00000.jsonl",
        "az://container/a",
        "s3://acme/..a/b..c/...",
        "s3://acme/it's+(1),!$&:;=@_-.jsonl",
    ],
)
def test_plain_url_of_object_is_kept_as_written(url: str) -> None:
    assert str(parse_object_url(url, "input_url")) == url


ATTACKS = {
    "other scheme": "http://169.254.169.254/latest/meta-data",
    "file": "file:///etc/passwd",
    "alias of a scheme": "s3a://acme/in/a",
    "upper-case scheme": "S3://acme/in/a",
    "upper-case bucket": "s3://Acme/in/a",
    "no bucket": "s3:///in/a",
    "no scheme": "acme/in/a",
    "user": "s3://user@acme/in/a",
    "user and password": "s3://user:password@acme/in/a",
    "port": "s3://acme:9000/in/a",
    "parent": "s3://acme/in/../out/a",
    "parent at the start": "s3://acme/../in/a",
    "parent at the end": "s3://acme/in/..",
    "current": "s3://acme/in/./a",
    "current at the end": "s3://acme/in/.",
    "encoded parent": "s3://acme/in/%2e%2e/a",
    "encoded slash": "s3://acme/in%2fa",
    "double encoded": "s3://acme/in/%252e%252e/a",
    "empty part": "s3://acme/in//a",
    "empty first part": "s3://acme//in/a",
    "backslash": "s3://acme/in/..\\a",
    "query": "s3://acme/in/a?versionId=1",
    "fragment": "s3://acme/in/a#b",
    "unicode dots": "s3://acme/in/\u2025/a",
    "fullwidth slash": "s3://acme/in\uff0fa",
    "unicode bucket": "s3://acm\u0435/in/a",
    "unicode digit": "s3://acme\u0661/in/a",
    "line break at the end": "s3://acme/in/a\n",
    "zero byte": "s3://acme/in/a\x00",
    "tab": "s3://acme/in/\ta",
    "space before": " s3://acme/in/a",
    "space": "s3://acme/in/a b",
    "dots in the bucket": "s3://ac..me/in/a",
    "bucket of dots": "s3://../in/a",
    "glob": "s3://acme/in/*",
    "too long": "s3://acme/in/" + "a" * MAX_URL,
}


@pytest.mark.parametrize("url", ATTACKS.values(), ids=ATTACKS)
def test_url_in_another_form_is_rejected(url: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_bucket_url(url, "input_url")
    assert (raised.value.param, raised.value.code) == ("input_url", "invalid_bucket_url")


@pytest.mark.parametrize("url", ["s3://acme", "s3://acme/", "s3://acme/in/"])
def test_folder_is_no_object(url: str) -> None:
    with pytest.raises(InvalidRequest, match="is a folder"):
        parse_object_url(url, "input_url")


@pytest.mark.parametrize(
    ("registered", "url", "covers"),
    [
        ("s3://acme/in/", "s3://acme/in/a", True),
        ("s3://acme/in", "s3://acme/in/b/a", True),
        ("s3://acme", "s3://acme/a", True),
        ("s3://acme/in/", "s3://acme/in/", True),
        ("s3://acme/in/", "s3://acme/in", False),
        ("s3://acme/in", "s3://acme/inside/a", False),
        ("s3://acme/in/", "s3://acme/out/in/a", False),
        ("s3://acme/in/", "s3://acme/In/a", False),
        ("s3://acme/in/", "gs://acme/in/a", False),
        ("s3://acme", "s3://acme2/in/a", False),
        ("s3://acme-prompts", "s3://acme/prompts", False),
    ],
)
def test_bucket_covers_whole_parts_of_the_path(registered: str, url: str, covers: bool) -> None:
    bucket = _bucket(registered)
    found = covering([bucket], parse_bucket_url(url, "input_url"))
    assert found == (bucket if covers else None)


def test_longest_registered_url_decides() -> None:
    buckets = [
        _bucket("s3://acme/", may_write=True),
        _bucket("s3://acme/in/", may_read=True),
        _bucket("s3://acme/in/secret/", may_read=False, may_write=True),
    ]
    assert _is_allowed(buckets, "s3://acme/in/a", Access.READ)
    assert not _is_allowed(buckets, "s3://acme/in/a", Access.WRITE)
    assert not _is_allowed(buckets, "s3://acme/in/secret/a", Access.READ)
    assert _is_allowed(buckets, "s3://acme/in/secret/a", Access.WRITE)
    assert _is_allowed(buckets, "s3://acme/out/a", Access.WRITE)


def _is_allowed(buckets: list[Bucket], url: str, access: Access) -> bool:
    try:
        require_access(buckets, parse_bucket_url(url, "input_url"), access, "input_url")
    except InvalidRequest:
        return False
    return True


@pytest.mark.parametrize(
    ("first", "second", "overlaps"),
    [
        ("s3://acme/", "s3://acme/in/", True),
        ("s3://acme/in/", "s3://acme/", True),
        ("s3://acme/in/", "s3://acme/in/", True),
        ("s3://acme/in/", "s3://acme/inside/", False),
        ("s3://acme/", "gs://acme/", False),
    ],
)
def test_folders_overlap_if_one_contains_the_other(first: str, second: str, overlaps: bool) -> None:
    urls = [parse_folder_url(url, "url") for url in (first, second)]
    assert overlap(*urls) == overlaps
