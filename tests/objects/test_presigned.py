"""Presigned URLs of the buckets of three clouds."""

from __future__ import annotations

import base64
import hashlib

import httpx
import pytest

from lowtide.core.errors import InvalidRequest, NotFound, Unavailable
from lowtide.objects.joined import JoinedObjects, Piece, joined_key
from lowtide.objects.presigned import Presigner
from lowtide.objects.store import ObstoreObjects

DATA = bytes(range(256)) * 40


def put(signer: Presigner, key: str, data: bytes) -> None:
    (url,) = signer.sign("PUT", [key], 60)
    httpx.put(url, content=data, headers=signer.upload_headers).raise_for_status()


def test_signed_put_and_get_exchange_an_object(bucket_url: str) -> None:
    signer = Presigner(bucket_url)
    signer.check("transfer")
    put(signer, "parts/a", DATA)
    assert b"".join(ObstoreObjects(bucket_url).stream("parts/a")) == DATA
    (url,) = signer.sign("GET", ["parts/a"], 60)
    assert httpx.get(url).content == DATA
    ranged = httpx.get(url, headers={"Range": "bytes=5-9"})
    assert (ranged.status_code, ranged.content) == (206, DATA[5:10])


def test_altered_url_is_refused(bucket_url: str) -> None:
    if bucket_url.startswith("gs:"):
        pytest.skip("the front of Google's XML API verifies no signature")
    signer = Presigner(bucket_url)
    put(signer, "a", DATA)
    put(signer, "b", DATA)
    (url,) = signer.sign("GET", ["a"], 60)
    path, _, query = url.partition("?")
    assert httpx.get(f"{path.removesuffix('a')}b?{query}").status_code == 403
    assert httpx.put(url, content=b"x", headers=signer.upload_headers).status_code == 403


def test_store_verifies_the_md5_of_a_part(bucket_url: str) -> None:
    signer = Presigner(bucket_url)
    (url,) = signer.sign("PUT", ["a"], 60)
    digest = hashlib.md5(DATA, usedforsecurity=False).digest()
    headers = {**signer.upload_headers, "Content-MD5": base64.b64encode(digest).decode()}
    assert httpx.put(url, content=DATA[1:], headers=headers).status_code == 400
    assert signer.sizes("") == {}
    httpx.put(url, content=DATA, headers=headers).raise_for_status()


def test_sizes_are_those_of_one_folder(bucket_url: str) -> None:
    signer = Presigner(bucket_url)
    for key, size in {"x/1": 3, "x/2": 0, "xy/1": 5, "x/deep/1": 7}.items():
        put(signer, key, b"x" * size)
    assert signer.sizes("x") == {"1": 3, "2": 0, "deep/1": 7}
    assert signer.sizes("unknown") == {}


def test_copies_are_objects_of_their_own(bucket_url: str) -> None:
    signer, objects = Presigner(bucket_url), JoinedObjects(ObstoreObjects(bucket_url))
    for number in range(3):
        put(signer, f"parts/{number}", DATA[number:])
    signer.copy([(f"parts/{number}", f"files/{number}") for number in range(3)])
    put(signer, "parts/0", b"changed")
    objects.delete(["parts/1", "parts/2"])
    key = joined_key("whole")
    objects.join(key, [Piece(f"files/{number}", len(DATA) - number) for number in range(3)])
    assert b"".join(objects.stream(key)) == DATA + DATA[1:] + DATA[2:]
    assert objects.read_ranges(key, [(len(DATA) - 2, 4)]) == [DATA[-2:] + DATA[1:3]]
    objects.delete([key])
    assert signer.sizes("files") == {}


def test_missing_object_is_not_copied(bucket_url: str) -> None:
    with pytest.raises(NotFound):
        Presigner(bucket_url).copy([("missing", "copy")])


@pytest.mark.usefixtures("s3_environment")
def test_missing_bucket_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        Presigner("s3://nowhere/here").sizes("x")


@pytest.mark.parametrize("url", ["file:///tmp", "memory://"])
def test_folder_and_memory_have_no_urls(url: str) -> None:
    with pytest.raises(InvalidRequest, match="bucket of S3"):
        Presigner(url).check("transfer")
