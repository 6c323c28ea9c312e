"""Objects in registered buckets: large ones, and the credentials that reach them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import obstore
import pytest

from lowtide.buckets.model import Bucket, parse_bucket_url, parse_folder_url
from lowtide.buckets.remote import RemoteBuckets, require_foreign
from lowtide.core.errors import InvalidRequest
from tests.buckets.conftest import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.buckets.conftest import Stub

MIB = 1 << 20


def _bucket(url: str, credentials: str) -> Bucket:
    return Bucket(parse_folder_url(url, "url"), True, True, credentials, datetime.now(UTC), "op")


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "buckets.toml"
    path.write_text(text)
    return path


def test_large_object_is_written_in_parts(tmp_path: Path, s3_endpoint: str) -> None:
    path = _file(tmp_path, f'[real]\nendpoint = "{s3_endpoint}"\n{KEYS}')
    bucket = RemoteBuckets(path, own_url="").open(_bucket("s3://bucket/", "real"))
    pieces = [bytes([number]) * MIB for number in range(20)]
    url = parse_bucket_url(f"s3://bucket/{tmp_path.name}/large", "url")
    bucket.write(url, iter(pieces))
    assert b"".join(bucket.stream(bucket.head(url))) == b"".join(pieces)


@pytest.mark.parametrize("size", [1, 20])
def test_interrupted_write_leaves_no_object(tmp_path: Path, s3_endpoint: str, size: int) -> None:
    path = _file(tmp_path, f'[real]\nendpoint = "{s3_endpoint}"\n{KEYS}')
    bucket = RemoteBuckets(path, own_url="").open(_bucket("s3://bucket/", "real"))

    def pieces() -> Iterator[bytes]:
        yield from [b"x" * MIB] * size
        raise KeyError

    folder = f"{tmp_path.name}-{size}"
    with pytest.raises(KeyError):
        bucket.write(parse_bucket_url(f"s3://bucket/{folder}/a", "url"), pieces())
    assert [meta for page in obstore.list(bucket._store, folder) for meta in page] == []


def test_rotated_credentials_need_no_restart(tmp_path: Path, stub: Stub) -> None:
    stub.objects["/stub-bucket/a"] = b"{}"
    path = _file(tmp_path, "")
    buckets = RemoteBuckets(path, own_url="")
    with pytest.raises(InvalidRequest, match="are not configured"):
        buckets.open(_bucket("s3://stub-bucket/", "stub"))
    path.write_text(f'[stub]\nendpoint = "{stub.url}"\n{KEYS}')
    bucket = buckets.open(_bucket("s3://stub-bucket/", "stub"))
    assert bucket.head(parse_bucket_url("s3://stub-bucket/a", "url")).size == 2


def test_named_credentials_take_nothing_from_the_environment(
    tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENDPOINT_URL", "ENDPOINT", "SESSION_TOKEN", "SKIP_SIGNATURE"):
        monkeypatch.setenv(f"AWS_{name}", "http://127.0.0.1:9" if "ENDPOINT" in name else "true")
    stub.objects["/stub-bucket/a"] = b"{}"
    path = _file(tmp_path, f'[stub]\nendpoint = "{stub.url}"\n{KEYS}\n[aws]\n{KEYS}')
    buckets = RemoteBuckets(path, own_url="")
    bucket = buckets.open(_bucket("s3://stub-bucket/", "stub"))
    assert bucket.head(parse_bucket_url("s3://stub-bucket/a", "url")).size == 2
    assert stub.tokens == {None}
    aws = buckets.open(_bucket("s3://stub-bucket/", "aws"))
    assert aws._store.config["endpoint"] == "https://s3.us-east-1.amazonaws.com"


def test_default_credentials_are_those_of_the_environment(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "ENDPOINT_URL": stub.url,
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    stub.objects["/stub-bucket/a"] = b"{}"
    bucket = RemoteBuckets(None, own_url="").open(_bucket("s3://stub-bucket/", "default"))
    assert bucket.head(parse_bucket_url("s3://stub-bucket/a", "url")).size == 2


@pytest.mark.parametrize(
    "text",
    [
        "not TOML",
        "other = 1",
        "[other]\nsecret_access_key = 'a'",
        "[other]\nno_such_option = 'a'\n" + KEYS,
        "[other]\nregion = 1\nendpoint = 'http://127.0.0.1'",
    ],
)
def test_credentials_that_are_not_valid_are_reported_by_name(tmp_path: Path, text: str) -> None:
    buckets = RemoteBuckets(_file(tmp_path, text), own_url="")
    with pytest.raises(InvalidRequest, match="credentials 'other'") as raised:
        buckets.open(_bucket("s3://bucket/", "other"))
    assert raised.value.code == "bucket_not_set_up"
    assert "secret" not in raised.value.message


@pytest.mark.parametrize("url", ["s3://own/", "s3://own/data/", "s3://own/data/files/"])
def test_own_object_store_is_never_opened(tmp_path: Path, url: str) -> None:
    path = _file(tmp_path, f'[real]\nendpoint = "http://127.0.0.1:9"\n{KEYS}')
    with pytest.raises(InvalidRequest, match="own object store"):
        RemoteBuckets(path, own_url="s3://own/data").open(_bucket(url, "real"))


@pytest.mark.parametrize(
    ("own_url", "url"),
    [
        ("s3a://own/data", "s3://own/data/"),
        ("azure://own/data", "az://own/"),
        ("abfss://own@account.dfs.core.windows.net/data", "az://own/data/"),
        ("s3://own/~data", "s3://own/"),
        ("s3://own/a%20b", "s3://own/"),
    ],
)
def test_own_object_store_is_recognized_by_any_name(own_url: str, url: str) -> None:
    with pytest.raises(InvalidRequest, match="own object store"):
        require_foreign(parse_folder_url(url, "url"), own_url)


@pytest.mark.parametrize(
    ("own_url", "url"),
    [
        ("s3a://own/data", "s3://own/other/"),
        ("s3://own/~data", "s3://other/"),
        ("gs://own/", "s3://own/"),
        ("file:///own", "s3://own/"),
    ],
)
def test_other_folder_is_not_the_own_object_store(own_url: str, url: str) -> None:
    require_foreign(parse_folder_url(url, "url"), own_url)
